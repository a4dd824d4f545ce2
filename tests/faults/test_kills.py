"""`kill -9` at seeded random moments of every long stage: what is run again ends with the bytes of an unbroken run.

One kill of each kind of stage in the ordinary suite. Twenty, and the table of docs/reliability.md:

    pytest tests/faults/test_kills.py --kills 20 --kills-table kills.md
"""

import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.stage_scripts import StageScripts

pytestmark = pytest.mark.slow

STAGES = (
    "decompose@base",
    "cache_features",
    "train_lowrank@ResMLP",
    "train_lowrank@AdaLoRA",
    "build_adapter@lora_null_v2",
    "build_adapter@corda",
    "train_adapter@lora_null_v2",
    "checkpoint_llm",
    "checkpoint_base",
    "checkpoint_rl_stage1",
)
# Their loop and snapshots are those of checkpoint_llm, their doors those of the other adapter and network.
ONLY_IN_FULL = {"checkpoint_base", "checkpoint_rl_stage1", "build_adapter@corda", "train_lowrank@ResMLP"}
COLUMNS = ("stage", "kills", "in mid-work", "found work", "same bytes", "unbroken", "continued (median)")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageScripts]:
    doors = StageScripts(tmp_path_factory.mktemp("smoke"))
    yield doors
    doors.close()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[object, ...]]]:
    rows: list[tuple[object, ...]] = []
    yield rows
    if path := request.config.getoption("--kills-table"):
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
        Path(path).write_text("".join(f"| {' | '.join(map(str, line))} |\n" for line in lines))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment_a_stage_continues_to_the_same_bytes(
    doors: StageScripts, table: list[tuple[object, ...]], request: pytest.FixtureRequest, stage: str
) -> None:
    asked = request.config.getoption("--kills")
    if asked is None and stage in ONLY_IN_FULL:
        pytest.skip("with --kills only")
    unbroken = doors.unbroken(stage)
    whole = doors.tree()
    found, same, seconds = [], [], []
    for number in range(asked or 1):
        found.append(doors.kill(stage, random.Random(f"{stage} {number}").uniform(0, unbroken)))
        seconds.append(doors.run(stage))
        same.append(doors.tree() == whole and doors.work_folders(stage) == [])
    in_work, continued = sum(kill.in_work for kill in found), sum(bool(kill.left) for kill in found)
    table.append(
        (
            *(f"`{stage}`", len(found), in_work, continued, f"{sum(same)} of {len(same)}"),
            *(f"{unbroken:.2f} s", f"{statistics.median(seconds):.2f} s"),
        )
    )
    assert all(same), [(number, kill) for number, kill in enumerate(found) if not same[number]]
    assert in_work > 0.5 * len(found) or asked is None, "the kills came too late to say anything"
