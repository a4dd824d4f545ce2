"""Places that two runs want at once, and places that cannot be written to."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.clones import Clone, make_smoke_clone_in
from tests.faults.workshop import COMMANDS, run, snapshot

SEALED = {
    "decompose": "--output-dir sealed",
    "compare-rotations": "--output-dir sealed",
    "cache": "--output-dir sealed/new",
    "train-lowrank": "--results-dir sealed",
    "compare-lowrank": "--output-dir sealed",
    "visualize": "--output-dir sealed",
    "build": "--save-path sealed/adapter",
    "train-adapter": "--output-dir sealed",
    "verify": "--save-stats sealed/stats.json",
    "compare-stats": "--output-dir sealed",
    "norms": "--output sealed/norms.json",
}
"""Command -> the flags by which it writes to a folder that cannot be written to."""


@pytest.fixture
def sealed(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workshop with a read-only file system in `sealed`: modes would not stop root."""
    place = shutil.copytree(workshop, tmp_path / "place")
    monkeypatch.chdir(place)
    (place / "sealed").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place / "sealed")]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no `mount` here")
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place / "sealed")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", SEALED)
def test_a_folder_that_cannot_be_written_to_is_one_line(
    sealed: Path, capsys: pytest.CaptureFixture, command: str
) -> None:
    before = snapshot(sealed)
    code = run(f"{COMMANDS[command]} {SEALED[command]}")
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith("error: sealed")
    assert "Read-only file system; give a place that can be written to" in err
    assert snapshot(sealed) == before


@pytest.mark.slow
def test_a_store_that_cannot_be_written_to_is_one_line_before_any_work(sealed: Path) -> None:
    environment = os.environ | {"TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{sealed}/sealed/mlflow.db"}
    words = COMMANDS["compare-stats"].replace(" --no-track", "").split()
    before = snapshot(sealed)
    line = [sys.executable, "-m", "subspacelab", *words]
    done = subprocess.run(line, cwd=sealed, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "sealed/.lock: Read-only file system; give a place that can be written to" in done.stderr
    assert snapshot(sealed) == before


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project with the smoke study, of which nothing has run."""
    return make_smoke_clone_in(tmp_path_factory.mktemp("clone"))


def start(clone: Clone, *words: str) -> subprocess.Popen:
    environment = clone.environment(TRACKING="off", OMP_NUM_THREADS="1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["dvc", *words], cwd=clone.path, env=environment, **pipes)  # type: ignore[call-overload]


@pytest.mark.slow
def test_the_second_of_two_repros_at_once_is_told_so_and_harms_nothing(clone: Clone) -> None:
    first = start(clone, "repro", "scenes")
    deadline = time.monotonic() + 120
    while not list((clone.path / ".cache").rglob("scenes/*")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # else it may be done before the second has begun
    second = start(clone, "repro", "scenes")
    said = "".join(second.communicate())
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.communicate()
    assert second.returncode != 0
    assert "is busy" in said or "lock" in said, said
    third = start(clone, "repro", "scenes")
    assert "up to date" in third.communicate()[0]
    locked = YAML(typ="safe").load(clone.path / "dvc.lock")["stages"]
    assert set(locked) == {"scenes"}
    assert clone.run("dvc", "status", "scenes").stdout.startswith("Data and pipelines are up to date")


@pytest.mark.slow
def test_two_experiments_at_once_on_one_stage_share_nothing(clone: Clone) -> None:
    before = clone.run("git", "status", "--porcelain").stdout
    seeds = {"seed-one": 101, "seed-two": 102}
    running = [start(clone, "exp", "run", "--temp", "-n", n, "-S", f"seed={s}", "scenes") for n, s in seeds.items()]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    made = set()
    for name, seed in seeds.items():
        shown = clone.run("git", "show", f"{_revision(clone, name)}:dvc.lock").stdout
        stage = YAML(typ="safe").load(shown)["stages"]["scenes"]
        assert stage["params"]["params.yaml"]["seed"] == seed
        made.add(stage["outs"][0]["md5"])
    assert len(made) == 2
    assert clone.run("git", "status", "--porcelain").stdout == before
    work = clone.path / ".cache" / "stages" / "scenes"
    assert [path for path in work.iterdir() if path.is_dir()] == []


def _revision(clone: Clone, name: str) -> str:
    """The commit of an experiment."""
    listed = clone.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").stdout.splitlines()
    return next(line.split()[0] for line in listed if line.endswith(f"/{name}"))
