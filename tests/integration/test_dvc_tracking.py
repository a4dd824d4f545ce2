"""Real DVC runs of a tiny pipeline: the md5s, modes and parents are those DVC itself has."""

import subprocess
from pathlib import Path

import pytest
import yaml
from tests.integration.toy_pipeline import dvc_in
from tests.stores import Place

pytestmark = pytest.mark.slow


def _locked(place: Place) -> dict[str, str]:
    stages = yaml.safe_load((place.root / "dvc.lock").read_text())["stages"]
    return {f"dvc.out.{out['path']}": out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_repro_has_one_parent_and_the_md5s_of_dvc_lock(pipeline):
    dvc_in(pipeline, "repro")
    children = pipeline.runs("rotation")
    assert [run.info.run_name for run in children] == ["read", "make"]
    tagged = {key: value for run in children for key, value in run.data.tags.items() if key.startswith("dvc.out.")}
    assert tagged == _locked(pipeline)
    assert tagged["dvc.out.folder"].endswith(".dir")
    assert {run.data.tags["dvc.mode"] for run in children} == {"repro"}
    (parent,) = pipeline.runs("pipeline")
    assert parent.data.tags["pipeline.id"].startswith("repro:")
    assert parent.data.metrics == {"make.done": 1.0, "read.done": 1.0}
    dvc_in(pipeline, "repro")
    assert len(pipeline.runs("rotation")) == 2  # nothing ran


@pytest.mark.parametrize(("words", "mode"), [((), "exp"), (("--temp",), "temp")])
def test_experiments_record_in_the_main_store_under_their_name(pipeline, words, mode):
    dvc_in(pipeline, "exp", "run", "-n", "brave-owl", "-S", "rank=16", *words)
    children = pipeline.runs("rotation")
    assert {run.data.tags["dvc.mode"] for run in children} == {mode}
    assert {run.data.tags["dvc.apply"] for run in children} == {"dvc exp apply brave-owl"}
    (parent,) = pipeline.runs("pipeline")
    assert parent.info.run_name == "brave-owl"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    dvc_in(pipeline, "exp", "apply", "brave-owl")
    tagged = {key: value for run in children for key, value in run.data.tags.items() if key.startswith("dvc.out.")}
    assert tagged == _locked(pipeline)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=pipeline.root, capture_output=True, text=True)
    assert "mlruns" not in status.stdout
    assert not list(Path(pipeline.root / ".dvc" / "tmp" / "exps").glob("**/mlflow.db"))
