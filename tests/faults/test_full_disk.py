"""A disk that is full: one line, nothing half-written, and the same command goes on once there is room."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.faults.small_disk import LIMITS
from tests.faults.workshop import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
CASES = [f"{command}, {limit}" for command, limits in LIMITS.items() for limit in limits]


def child(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    environment = os.environ | path | environment
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def outcomes(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every command at every limit; one process for all, since importing torch takes longer than they."""
    place = tmp_path_factory.mktemp("disk") / "place"
    done = child("-m", "tests.faults.small_disk", str(workshop), str(place), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_is_one_line_and_the_work_goes_on_when_there_is_room(
    outcomes: dict[str, dict[str, Any]], case: str
) -> None:
    found = outcomes[case]
    assert found["code"] == 1, found
    assert found["err"].count("\n") == 1, found["err"]
    assert found["err"].startswith("error: ")
    assert "run again" in found["err"]
    assert "partial" not in found["err"]
    assert (found["half"], found["changed"]) == ([], [])
    assert (found["again"], found["complaint"], found["different"]) == (0, "", [])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_file_system_that_is_full(workshop: Path, tiny_disk: Path) -> None:
    (tiny_disk / "filling").write_bytes(bytes(57_344))  # two pages are left
    words = COMMANDS["decompose"].replace("svd/out", str(tiny_disk)).split()
    full = child("-m", "subspacelab", *words, cwd=workshop)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1), full.stderr
    assert "No space left on device; free some space and run again" in full.stderr
    assert [p for p in tiny_disk.rglob("*") if "partial" in p.name] == []
    assert not (tiny_disk / "base" / "index.json").exists()
    (tiny_disk / "filling").unlink()
    done = child("-m", "subspacelab", *words, cwd=workshop)
    assert (done.returncode, done.stderr) == (0, "")
    expected = {p.name: p.read_bytes() for p in (workshop / "svd" / "out" / "base").glob("*.safetensors")}
    assert {p.name: p.read_bytes() for p in (tiny_disk / "base").glob("*.safetensors")} == expected
    assert (tiny_disk / "base" / "index.json").exists()


WORDS = COMMANDS["norms"].replace(" --no-track", "")
WITHOUT_ROOM = f"""
import json
from pathlib import Path
from tests.faults.small_disk import file_size_limit, said_by
said = [said_by({WORDS!r})]
with file_size_limit(Path("mlruns/mlflow.db").stat().st_size):
    said.append(said_by({WORDS.replace("norms.json", "anew.json")!r}))
kept = len(list(Path(".cache/untracked").glob("*.jsonl")))
said.append(said_by("runs sync"))
print(json.dumps([kept, *said]))
"""  # one process: each import of MLflow takes longer than all this


@pytest.mark.slow
def test_a_store_that_is_full_costs_no_result_and_gets_its_records_later(workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / ".git").mkdir()
    done = child("-c", WITHOUT_ROOM, cwd=tmp_path, TRACKING="on")
    assert (done.returncode, done.stderr) == (0, "")
    num_kept, first, full, sync = json.loads(done.stdout.splitlines()[-1])
    assert (first, full[0]) == ([0, ""], 0)
    assert (tmp_path / "anew.json").read_bytes() == (tmp_path / "norms.json").read_bytes()
    lines = full[1].splitlines()
    assert len(lines) == 2, lines
    assert "the work goes on and its records are kept" in lines[0]
    assert "'subspacelab runs sync' delivers them" in lines[1]
    assert num_kept == 1
    assert "dvc.yaml is missing" in sync[1]  # no project here; the records come first
    assert list((tmp_path / ".cache" / "untracked").iterdir()) == []
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as store:
        rows = store.execute("select run_uuid, status from runs").fetchall()
        metrics = [store.execute("select key, value from metrics where run_uuid = ? order by key", (r,)).fetchall()
                   for r, _ in rows]  # fmt: skip
    assert [status for _, status in rows] == ["FINISHED"] * 2
    assert metrics[0] == metrics[1] != []
