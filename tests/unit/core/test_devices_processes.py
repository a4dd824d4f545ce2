import sys
from itertools import pairwise

import pytest

from subspacelab.core.devices import is_main_process, lost_processes_named, processes, split_by_cost


def test_longest_first_gives_each_item_once_and_balances() -> None:
    costs = [7.0, 1.0, 5.0, 3.0, 2.0, 6.0]
    shares = split_by_cost(costs, 2)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    assert [sum(costs[i] for i in share) for share in shares] == [12.0, 12.0]
    assert all(costs[a] >= costs[b] for share in shares for a, b in pairwise(share))


def test_load_stays_within_grahams_bound() -> None:
    costs = [float(1 + (i * 37) % 11) for i in range(40)]
    for num in (1, 3, 7):
        loads = [sum(costs[i] for i in share) for share in split_by_cost(costs, num)]
        best = max(sum(costs) / num, max(costs))
        assert max(loads) <= (4 / 3) * best + 1e-9


def test_more_processes_than_items_leaves_some_without() -> None:
    assert split_by_cost([1.0], 3) == [[0], [], []]


def test_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="num_processes=0"):
        split_by_cost([1.0], 0)


def test_one_process_waits_for_nobody_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)  # an import of it would now raise
    group = processes(cpu=True)
    group.wait()
    assert (group.rank, group.count, group.is_main) == (0, 1, True)


def test_the_main_process_is_known_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("RANK", "-1"), ("WORLD_SIZE", "1.5")])
def test_a_rank_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}='{value}' in the environment is no whole number; unset it"):
        is_main_process() if name == "RANK" else processes(cpu=True)


def test_only_what_says_that_a_process_is_gone_is_told_so() -> None:
    with pytest.raises(ConnectionError, match="another of the processes has ended"), lost_processes_named():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:19842. GLHF!")
    with pytest.raises(RuntimeError, match="^size mismatch$"), lost_processes_named():
        raise RuntimeError("size mismatch")
