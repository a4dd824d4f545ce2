"""`kill -9` in mid-training, in mid-decompose and of DVC itself: the next run completes, to the same bytes."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from ruamel.yaml import YAML

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipeline")]  # one worker, one clone


LAST = "compare_rotations"  # the rest of the pipeline is as much again; its own tests kill it nearer by


def lock(clone) -> dict:
    return YAML(typ="safe").load(clone.path / "dvc.lock")["stages"]


def start_and_kill(clone, arrived, *, group: bool) -> None:
    """Starts `dvc repro`, and kills it, or the whole process group, as soon as `arrived()`."""
    process = subprocess.Popen(
        ["dvc", "repro", LAST],
        cwd=clone.path,
        env=clone.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not arrived():
        assert process.poll() is None, "the pipeline ended before it could be killed"
        assert time.monotonic() < deadline, "the pipeline did not get there"
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_three_times_the_pipeline_ends_with_the_same_bytes(smoke_clone, make_smoke_clone):
    clone = make_smoke_clone()
    work = clone.path / ".cache" / "stages"

    start_and_kill(clone, lambda: any(work.glob("checkpoint_base/*/snapshot.pt")), group=True)
    # DVC alone: its stage lives on as an orphan, and may still be writing when the next run begins.
    start_and_kill(clone, lambda: any(work.glob("checkpoint_rl_stage1/*/snapshot.pt")), group=False)
    start_and_kill(clone, lambda: any(work.glob("decompose@*/*/*/*.safetensors")), group=True)
    clone.run("dvc", "repro", LAST)

    once = lock(smoke_clone)
    assert lock(clone) == {stage: once[stage] for stage in lock(clone)}
    for report in (smoke_clone.path / "reports").glob("[!l]*/*.json"):  # room 2's come after
        twin = clone.path / report.relative_to(smoke_clone.path)
        assert twin.read_bytes() == report.read_bytes()
    statuses = [run.info.status for run in clone.runs()]
    assert "RUNNING" not in statuses
    assert statuses.count("KILLED") >= 2
    assert "up to date" in clone.run("dvc", "repro", LAST).stdout


def test_an_input_edited_in_mid_run_is_not_filed_under_the_new_value(smoke_clone, tmp_path):
    # A copy: the refused run stays FAILED in its store, and other tests look at the runs of the shared clone.
    clone = replace(smoke_clone, path=shutil.copytree(smoke_clone.path, tmp_path / "clone", symlinks=True))
    params = clone.path / "params.yaml"
    lock = (clone.path / "dvc.lock").read_text()
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", "compare_rotations"],
        cwd=clone.path,
        env=clone.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    running = clone.path / ".cache" / "stages" / "compare_rotations"
    while process.poll() is None and not any(p.is_dir() for p in running.glob("*")):
        time.sleep(0.01)
    params.write_text(params.read_text().replace("k: null", "k: 3"))
    _, printed = process.communicate()
    assert process.returncode != 0
    assert "params.yaml" in printed
    assert (clone.path / "dvc.lock").read_text() == lock
