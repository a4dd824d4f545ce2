"""What needs no store: null and memory trackers, names, and tracking that is off or cannot be on."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch

from subspacelab.tracking import MemoryTracker, ModelFiles, NullTracker, Tracker, open_run, open_stage_run
from subspacelab.tracking.protocol import flatten, pinned, require_name


def test_importing_does_nothing(tmp_path):
    code = "import sys, subspacelab.tracking; print([m for m in sys.modules if m.split('.')[0] in ('mlflow', 'dvc')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def _tell_everything(tracker: Tracker, file: Path) -> None:
    tracker.log_params({"rank": 8, "train": {"lr": 0.1}})
    tracker.log_metrics({"loss": 2.0}, step=3)
    tracker.log_headline({"iou": 0.5})
    tracker.log_artifact(file, "pictures")
    tracker.log_table(pd.DataFrame({"a": [1]}), "table")
    tracker.log_model(ModelFiles("m", file.parent, file, []))
    tracker.set_tags({"k": 1})


def test_null_tracker_keeps_nothing(tmp_path):
    tracker = NullTracker()
    _tell_everything(tracker, tmp_path / "missing")
    assert tracker.run_id is None
    assert vars(tracker) == {}


def test_memory_tracker_keeps_everything(tmp_path):
    tracker = MemoryTracker()
    _tell_everything(tracker, tmp_path / "a.png")
    assert tracker.params == {"rank": "8", "train.lr": "0.1"}
    assert tracker.metrics == {"loss": [(3, 2.0)], "iou": [(0, 0.5)]}
    assert tracker.headline == {"iou": 0.5}
    assert tracker.artifacts == ["pictures/a.png"]
    assert list(tracker.tables) == ["table"]
    assert list(tracker.models) == ["m"]
    assert tracker.tags == {"k": "1"}


@pytest.mark.parametrize("off", ["off", "0", "False", "no"])
def test_tracking_off_gives_a_null_tracker(off, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKING", off)
    with (
        open_run("rotation", "x", params={}) as one,
        open_stage_run("s", "rotation", params={}, outs=[], study="d") as two,
    ):
        assert isinstance(one, NullTracker)
        assert isinstance(two, NullTracker)
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_processes_tracks(monkeypatch):
    monkeypatch.setenv("TRACKING", "on")
    monkeypatch.setenv("RANK", "1")
    with open_run("rotation", "x", params={}) as tracker:
        assert isinstance(tracker, NullTracker)


def test_missing_mlflow_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setenv("TRACKING", "on")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with (
        pytest.raises(ValueError, match=r"pip install '\.\[pipeline\]' in the clone.*--no-track") as caught,
        open_run("e", "x", params={}),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loss", "layer.0/q_proj", "a b:c-d.e"])
def test_names_the_store_takes(name):
    assert require_name(name, "metric") == name


@pytest.mark.parametrize("name", ["", "a@b", "/a", "a//b", "a/../b", "é", "x" * 251])
def test_names_the_store_refuses_are_refused_at_once(name):
    with pytest.raises(ValueError, match="metric name .* cannot be tracked"):
        MemoryTracker().log_metrics({name: 1.0})


def test_requirements_are_this_package_and_others_at_the_versions_that_run():
    own, other = pinned("torch")
    assert own == f"subspacelab=={version('subspacelab')}"
    assert torch.__version__.startswith(other.removeprefix("torch=="))  # PyPI's name of a wheel leaves "+cu130" out


def test_nested_params_become_dotted():
    assert dict(flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}})) == {"a.b.c": "1", "a.d": "[1, 2]", "e": "{}"}
