"""Records outlive a store that goes away."""

import threading
import time

import pytest

from subspacelab.tracking.outbox import Outbox, Record, Refused, Unreachable, read_records, write_records


class _Store:
    """Takes records, or fails as told."""

    def __init__(self) -> None:
        self.taken: list[dict] = []
        self.failure: Exception | None = None

    def deliver(self, record: dict) -> None:
        if self.failure:
            raise self.failure
        self.taken.append(record)


def test_outbox_delivers_late_and_in_order(tmp_path, capsys):
    store = _Store()
    outbox = Outbox("the store", tmp_path / "left.jsonl", store.deliver)
    store.failure = Unreachable("gone")
    outbox.send({"number": 1})
    store.failure = None
    outbox.send({"number": 2})  # within the pause: not tried
    assert store.taken == []
    outbox.close()
    assert store.taken == [{"number": 1}, {"number": 2}]
    assert not (tmp_path / "left.jsonl").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_outbox_keeps_what_never_arrives(tmp_path, capsys):
    store = _Store()
    outbox = Outbox("the store", tmp_path / "deep" / "left.jsonl", store.deliver)
    store.failure = Refused("no such thing")
    outbox.send({"number": 1})
    store.failure = None
    outbox.send({"number": 2})  # a refusal does not hold up what follows
    store.failure = Unreachable("gone")
    outbox.send({"number": 3})
    outbox.close()
    assert store.taken == [{"number": 2}]
    assert read_records(tmp_path / "deep" / "left.jsonl") == [{"number": 1}, {"number": 3}]
    assert "did not take 2 record(s)" in capsys.readouterr().err


@pytest.mark.parametrize("failure", [Unreachable("gone"), Refused("no")])
def test_what_waits_has_its_files_kept_when_the_originals_go(tmp_path, failure):
    store = _Store()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "picture.png").write_bytes(b"png")
    (tmp_path / "work" / "folder").mkdir()
    (tmp_path / "work" / "folder" / "a").write_text("a")
    outbox = Outbox("the store", tmp_path / "left.jsonl", store.deliver)
    store.failure = failure
    outbox.send({"artifact": str(tmp_path / "work" / "picture.png"), "into": None})
    outbox.send({"model": "m", "files": str(tmp_path / "work" / "folder"), "code": str(tmp_path / "work/picture.png")})
    (tmp_path / "work").rename(tmp_path / "gone")
    outbox.close()
    picture, model = read_records(tmp_path / "left.jsonl")
    with open(picture["artifact"], "rb") as f:
        assert (f.name.endswith("picture.png"), f.read()) == (True, b"png")
    with open(f"{model['files']}/a") as f:
        assert f.read() == "a"
    write_records(tmp_path / "left.jsonl", [])
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


def test_copies_go_when_everything_arrived_in_the_end(tmp_path):
    store = _Store()
    (tmp_path / "p.png").write_bytes(b"png")
    outbox = Outbox("the store", tmp_path / "left.jsonl", store.deliver)
    store.failure = Unreachable("gone")
    outbox.send({"artifact": str(tmp_path / "p.png"), "into": None})
    store.failure = None
    outbox.close()
    assert len(store.taken) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "left.jsonl").write_text('{"number": 1}\n{"num\n')
    with pytest.raises(ValueError, match="left.jsonl, line 2: not valid JSON"):
        read_records(tmp_path / "left.jsonl")


def test_records_that_no_disk_takes_are_said_to_be_lost_and_stop_no_work(tmp_path, capsys):
    def fail(record):
        raise Unreachable("gone")

    (tmp_path / "untracked").touch()
    outbox = Outbox("the store", tmp_path / "untracked" / "left.jsonl", fail)
    outbox.send({"run_id": "a"})
    outbox.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "did not take 1 record(s), which are lost, for" in lines[1]
    assert "left.jsonl cannot be written (Not a directory); no result is lost" in lines[1]


def test_threads_share_an_outbox_and_no_record_is_lost_or_sent_twice(tmp_path):
    sent: list[Record] = []

    def deliver(record: Record) -> None:
        time.sleep(1e-4)  # lets another thread in
        if len(sent) % 7 == 3 and not record.get("tried"):
            record["tried"] = True
            raise Unreachable("busy")
        sent.append(record)

    outbox = Outbox("the store", tmp_path / "left.jsonl", deliver)

    def work(name: str) -> None:
        for number in range(50):
            outbox._not_before = 0.0
            outbox.send({"run_id": name, "number": number})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outbox._not_before = 0.0
    outbox.close()
    for name in "abcd":
        assert [record["number"] for record in sent if record["run_id"] == name] == list(range(50))
