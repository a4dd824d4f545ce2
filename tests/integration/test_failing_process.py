"""Two gloo processes of which one fails: the other ends too, within a minute and without a launcher's help."""

import time
from pathlib import Path

import pytest
from tests.integration.two_processes import start_two
from tests.unit.nullspace.trainings import contents, write_adapter_of, write_base

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
from tests.unit.nullspace.trainings import STEPS, train_tiny
from subspacelab.core.errors import one_line_errors
from subspacelab.models import fine_tuning
plain = fine_tuning._Curves.on_log
def fail_at_3(self, args, state, control, **given):
    if os.environ["RANK"] == "1" and state.global_step == 3:
        raise ValueError("this rank has had enough")
    plain(self, args, state, control, **given)
fine_tuning._Curves.on_log = fail_at_3
with one_line_errors():
    train_tiny(*map(__import__("pathlib").Path, sys.argv[1:]))
"""


def test_a_process_that_fails_in_a_step_ends_the_other(tmp_path: Path) -> None:
    write_base(tmp_path)
    adapter = write_adapter_of(tmp_path, tmp_path / "adapter")
    both = start_two(SCRIPT, adapter, tmp_path / "out", cwd=tmp_path)
    said = [both[1].communicate(timeout=300)[1]]
    start = time.monotonic()
    said.insert(0, both[0].communicate(timeout=60)[1])
    assert time.monotonic() - start < 60
    assert [p.returncode for p in both] == [1, 1]
    assert said[1].endswith("error: this rank has had enough\n")
    assert said[0].endswith("error: another of the processes has ended, so this one ends too; its message says why\n")
    assert not (tmp_path / "out" / "ft").exists()
    assert "checkpoint-2/adapter_model.safetensors" in contents(tmp_path / "out" / "checkpoints")
