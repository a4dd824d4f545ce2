"""A build that was killed goes on with the block it was at, to the bytes of one that was not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.nullspace.builds import make
from tests.unit.nullspace.trainings import contents

from subspacelab.core.files import write_json
from subspacelab.models.hidden_states import HiddenStates, StatesOnDisk, open_states
from subspacelab.nullspace import blocks


class Killed(BaseException):
    """As SIGKILL: nothing of ours handles it."""


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the blocks that were solved; the second is killed at the end when the list is `armed` by a -1."""
    done: list[int] = []
    original = blocks._block_starts

    def counted(task: Any, index: int, *rest: Any) -> Any:
        yield from original(task, index, *rest)
        if done[:1] == [-1] and index == 1:
            done.clear()
            raise Killed
        done.append(index)

    monkeypatch.setattr(blocks, "_block_starts", counted)
    return done


@pytest.mark.parametrize(("method", "offload"), [("lora_null_v1", "cpu"), ("lora", "disk"), ("corda", "disk")])
def test_killed_it_goes_on_to_the_same_bytes(
    bases: Path, tmp_path: Path, solved: list[int], method: str, offload: str
) -> None:
    make(bases, tmp_path / "whole", method, offload=offload)
    assert solved == [0, 1]
    solved[:] = [-1]
    with pytest.raises(Killed):
        make(bases, tmp_path / "killed", method, offload=offload)
    work = tmp_path / ".killed.unfinished"
    assert (work / "block-0.json").is_file()
    torch.rand(5)
    make(bases, tmp_path / "killed", method, offload=offload)
    assert solved == [1]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "killed"}


def test_without_calibration_too(bases: Path, tmp_path: Path, solved: list[int]) -> None:
    make(bases, tmp_path / "whole", "frozen_random", calib_dataset=None)
    solved[:] = [-1]
    with pytest.raises(Killed):
        make(bases, tmp_path / "killed", "frozen_random", calib_dataset=None)
    make(bases, tmp_path / "killed", "frozen_random", calib_dataset=None)
    assert solved == [1]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_where_the_states_are_does_not_change_a_bit(bases: Path, tmp_path: Path) -> None:
    for offload in ("cpu", "disk"):
        make(bases, tmp_path / offload, offload=offload)
        assert contents(tmp_path / offload) == contents(tmp_path / "cpu")


def test_what_is_left_of_another_build_is_not_taken_up(bases: Path, tmp_path: Path, solved: list[int]) -> None:
    solved[:] = [-1]
    with pytest.raises(Killed):
        make(bases, tmp_path / "out")
    make(bases, tmp_path / "out", seed=8)
    assert solved == [0, 1]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_that_is_not_of_a_build_is_not_touched(bases: Path, tmp_path: Path) -> None:
    theirs = tmp_path / ".out.unfinished" / "thesis.tex"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    with pytest.raises(ValueError, match=r"\.out\.unfinished: not of an unfinished build"):
        make(bases, tmp_path / "out")
    write_json(theirs.with_name("job.json"), {"method": "lora"})
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', no part of an unfinished build"):
        make(bases, tmp_path / "out")
    assert theirs.read_text() == "years of work"


def test_states_come_back_before_and_after_a_block(tmp_path: Path) -> None:
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    for states in (HiddenStates(torch.device("cpu")), StatesOnDisk(tmp_path)):
        states.put(0, first)
        states.advance()
        assert torch.equal(states.before(0), first)
        states.put(0, second)
        if isinstance(states, StatesOnDisk):
            assert torch.equal(states.before(0), first)  # a kill now would need it
        states.advance()
        assert torch.equal(states.before(0), second)
        assert states.depth == 1
    again = StatesOnDisk(tmp_path)
    assert not again.resume(2)
    assert again.resume(1)
    assert torch.equal(again.before(0), second)
    assert [p.name for p in tmp_path.iterdir()] == ["states-1"]


def test_states_without_room_in_memory_go_to_disk_or_are_refused(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert not isinstance(open_states("auto", 10, cpu, tmp_path), StatesOnDisk)
    assert isinstance(open_states("disk", 10, cpu, tmp_path), StatesOnDisk)
    with pytest.raises(ValueError, match="take 1e\\+18 bytes, more than half of memory, and twice that on disk"):
        open_states("auto", 10**18, cpu, tmp_path / "new")


def test_reports_survive_the_way_through_json(bases: Path, tmp_path: Path) -> None:
    built = make(bases, tmp_path / "out")
    for layer in built.layers:
        assert blocks.LayerReport.of(json.loads(json.dumps(asdict(layer)))) == layer
