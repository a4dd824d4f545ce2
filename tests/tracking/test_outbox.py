"""Records outlive a store that goes away."""

import json

from subspacelab.tracking.outbox import Letter, Outbox, Refused, Unreachable


class _Store:
    """Takes letters, or fails as told."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.failure: Exception | None = None

    def letter(self, number: int) -> Letter:
        def deliver() -> None:
            if self.failure:
                raise self.failure
            self.taken.append(number)

        return Letter({"number": number}, deliver)


def test_outbox_delivers_late_and_in_order(tmp_path, capsys):
    store, outbox = _Store(), Outbox("the store", tmp_path / "left.jsonl")
    store.failure = Unreachable("gone")
    outbox.send(store.letter(1))
    store.failure = None
    outbox.send(store.letter(2))  # within the pause: not tried
    assert store.taken == []
    outbox.close()
    assert store.taken == [1, 2]
    assert not (tmp_path / "left.jsonl").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_outbox_keeps_what_never_arrives(tmp_path, capsys):
    store, outbox = _Store(), Outbox("the store", tmp_path / "deep" / "left.jsonl")
    store.failure = Refused("no such thing")
    outbox.send(store.letter(1))
    store.failure = None
    outbox.send(store.letter(2))  # a refusal does not hold up what follows
    store.failure = Unreachable("gone")
    outbox.send(store.letter(3))
    outbox.close()
    assert store.taken == [2]
    lines = (tmp_path / "deep" / "left.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 3]
    assert "did not take 2 record(s)" in capsys.readouterr().err
