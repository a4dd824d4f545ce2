"""A DVC pipeline of stages that take no time."""

import os
import subprocess
import sys

import pytest
import yaml
from tests.stores import SRC, Place

_SCRIPT = """
import sys
from pathlib import Path
from subspacelab.tracking import open_stage_run
stage, out = sys.argv[1], Path(sys.argv[2])
rank = Path("params.yaml").read_text().strip()
with open_stage_run(stage, "rotation", params={"rank": rank}, outs=[out], study="demo") as tracker:
    out.parent.mkdir(exist_ok=True)
    if out.suffix == ".json":
        out.write_text('{"score": -' + rank.removeprefix("rank: ") + "}")
    elif out.suffix:
        out.write_text(rank)
    else:
        (out / "sub").mkdir(parents=True)
        for name in ("b", "a-1", "a", "sub/c", "sub.d", "Z", "\\u00e9"):
            (out / name).write_text(name + rank)
    tracker.log_headline({f"{stage}.done": 1.0})
"""


def _stage(name: str, out: str, deps: list[str]) -> dict:
    command = f"{sys.executable} stage.py {name} {out}"
    return {"cmd": command, "deps": ["stage.py", *deps], "params": ["rank"], "outs": [out]}


def run_in(place: Place, *command: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment = kept | {"PYTHONPATH": str(SRC), "DVC_NO_ANALYTICS": "1", "TRACKING": "on"}
    done = subprocess.run(command, cwd=place.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def pipeline(place: Place) -> Place:
    """A git and DVC repository with one stage that makes a folder and one that makes a file."""
    (place.root / ".git").rmdir()
    (place.root / "stage.py").write_text(_SCRIPT)
    (place.root / "params.yaml").write_text("rank: 8\n")
    (place.root / ".gitignore").write_text("/mlruns\n")
    (place.root / ".dvcignore").write_text("/mlruns\n")
    stages = {"make": _stage("make", "folder", []), "read": _stage("read", "file.txt", ["folder"])}
    (place.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    run_in(place, "git", "init", "-q")
    run_in(place, "git", "config", "user.name", "t")
    run_in(place, "git", "config", "user.email", "t@localhost")
    dvc_in(place, "init", "-q")
    run_in(place, "git", "add", "-A")
    run_in(place, "git", "commit", "-qm", "start")
    return place


def add_score(place: Place) -> None:
    """A third stage, whose metric reports/score.json is minus the rank."""
    stages = yaml.safe_load((place.root / "dvc.yaml").read_text())["stages"]
    stage = _stage("score", "reports/score.json", [])
    stages["score"] = {k: v for k, v in stage.items() if k != "outs"} | {
        "metrics": [{"reports/score.json": {"cache": False}}]
    }
    (place.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))


def dvc_in(place: Place, *words: str) -> None:
    run_in(place, sys.executable, "-m", "dvc", *words)
