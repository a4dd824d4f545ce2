"""Real DVC runs of a tiny pipeline: the md5s, modes and parents are those DVC itself has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.tracking.conftest import SRC, Place

pytestmark = pytest.mark.slow

_DOOR = """
import sys
from pathlib import Path
from subspacelab.tracking import open_stage_run
stage, out = sys.argv[1], Path(sys.argv[2])
rank = Path("params.yaml").read_text().strip()
with open_stage_run(stage, "rotation", params={"rank": rank}, outs=[out], study="demo") as tracker:
    if out.suffix:
        out.write_text(rank)
    else:
        (out / "sub").mkdir(parents=True)
        for name in ("b", "a-1", "a", "sub/c", "sub.d", "Z", "\\u00e9"):
            (out / name).write_text(name + rank)
    tracker.log_headline({f"{stage}.done": 1.0})
"""


def _stage(name: str, out: str, deps: list[str]) -> dict:
    command = f"{sys.executable} door.py {name} {out}"
    return {"cmd": command, "deps": ["door.py", *deps], "params": ["rank"], "outs": [out]}


def _run(place: Place, *command: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment = kept | {"PYTHONPATH": str(SRC), "DVC_NO_ANALYTICS": "1", "TRACKING": "on"}
    done = subprocess.run(command, cwd=place.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def pipeline(place: Place) -> Place:
    """A git and DVC repository with one stage that makes a folder and one that makes a file."""
    (place.root / ".git").rmdir()
    (place.root / "door.py").write_text(_DOOR)
    (place.root / "params.yaml").write_text("rank: 8\n")
    (place.root / ".gitignore").write_text("/mlruns\n")
    (place.root / ".dvcignore").write_text("/mlruns\n")
    stages = {"make": _stage("make", "folder", []), "read": _stage("read", "file.txt", ["folder"])}
    (place.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    _run(place, "git", "init", "-q")
    _run(place, "git", "config", "user.name", "t")
    _run(place, "git", "config", "user.email", "t@localhost")
    _dvc(place, "init", "-q")
    _run(place, "git", "add", "-A")
    _run(place, "git", "commit", "-qm", "start")
    return place


def _dvc(place: Place, *words: str) -> None:
    _run(place, sys.executable, "-m", "dvc", *words)


def _locked(place: Place) -> dict[str, str]:
    stages = yaml.safe_load((place.root / "dvc.lock").read_text())["stages"]
    return {f"dvc.out.{out['path']}": out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_repro_has_one_parent_and_the_md5s_of_dvc_lock(pipeline):
    _dvc(pipeline, "repro")
    children = pipeline.runs("rotation")
    assert [run.info.run_name for run in children] == ["read", "make"]
    tagged = {key: value for run in children for key, value in run.data.tags.items() if key.startswith("dvc.out.")}
    assert tagged == _locked(pipeline)
    assert tagged["dvc.out.folder"].endswith(".dir")
    assert {run.data.tags["dvc.mode"] for run in children} == {"repro"}
    (parent,) = pipeline.runs("pipeline")
    assert parent.data.tags["pipeline.id"].startswith("repro:")
    assert parent.data.metrics == {"make.done": 1.0, "read.done": 1.0}
    _dvc(pipeline, "repro")
    assert len(pipeline.runs("rotation")) == 2  # nothing ran


@pytest.mark.parametrize(("words", "mode"), [((), "exp"), (("--temp",), "temp")])
def test_experiments_record_in_the_main_store_under_their_name(pipeline, words, mode):
    _dvc(pipeline, "exp", "run", "-n", "brave-owl", "-S", "rank=16", *words)
    children = pipeline.runs("rotation")
    assert {run.data.tags["dvc.mode"] for run in children} == {mode}
    assert {run.data.tags["dvc.apply"] for run in children} == {"dvc exp apply brave-owl"}
    (parent,) = pipeline.runs("pipeline")
    assert parent.info.run_name == "brave-owl"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    _dvc(pipeline, "exp", "apply", "brave-owl")
    tagged = {key: value for run in children for key, value in run.data.tags.items() if key.startswith("dvc.out.")}
    assert tagged == _locked(pipeline)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=pipeline.root, capture_output=True, text=True)
    assert "mlruns" not in status.stdout
    assert not list(Path(pipeline.root / ".dvc" / "tmp" / "exps").glob("**/mlflow.db"))
