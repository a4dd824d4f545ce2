"""What MLflow's UI makes of a run: its kind of experiment, its name, description, data sets and system metrics."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from subspacelab.tracking import open_run, open_stage_run, system
from subspacelab.tracking.dvc_files import md5_file
from subspacelab.tracking.mlflow_tracker import KIND, experiment_id
from subspacelab.tracking.notes import NOTE, Summary, note

((KIND_KEY, KIND_VALUE),) = KIND.items()


def _picture(path: Path) -> Path:
    Image.new("RGB", (1440, 144)).save(path)
    return path


def _stage(**given):
    return open_stage_run("compare", "rotation", **({"params": {}, "outs": [], "study": "smoke"} | given))


def test_experiments_open_in_the_view_for_model_training(place):
    client = place.client()
    old = client.create_experiment("rotation")  # made by an earlier version
    chosen = client.create_experiment("norms", tags={KIND_KEY: "genai_development"})
    for name in ("rotation", "norms", "lowrank"):
        experiment_id(client, place.uri, name)
    kinds = {e.experiment_id: e.tags.get(KIND_KEY) for e in client.search_experiments()}
    new = client.get_experiment_by_name("lowrank").experiment_id
    assert (kinds[old], kinds[new], kinds[chosen]) == (KIND_VALUE, KIND_VALUE, "genai_development")


def test_a_pipeline_run_has_the_name_of_its_study_and_time(place, monkeypatch):
    with _stage():
        pass
    (parent,) = place.runs("pipeline")
    assert re.fullmatch(r"smoke \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", parent.info.run_name)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-owl")
    with _stage():
        pass
    assert place.runs("pipeline")[0].info.run_name == "brave-owl"


def test_the_description_says_what_the_run_does_and_what_came_out(place):
    picture = _picture(place.root / "p.png")
    (place.root / "torn.png").write_bytes(b"png")
    with _stage(description="Turns of the weights") as tracker:
        tracker.log_headline({"composition_error_z": -0.46691})
        tracker.log_artifact(place.root / "torn.png", "pictures")
        tracker.log_artifact(picture, "pictures")
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    text = run.data.tags[NOTE]
    assert text.startswith("Turns of the weights\n\n| headline metric | value |")
    assert "| composition_error_z | -0.4669 |" in text
    assert f"![p](get-artifact?path=description%2Fp.png&run_uuid={run.info.run_id})" in text
    assert "torn" not in text
    shown = Image.open(place.client().download_artifacts(run.info.run_id, "description/p.png"))
    assert shown.size == (720, 72), "MLflow's UI cuts off what is wider"
    assert "The pipeline on the study `smoke`" in parent.data.tags[NOTE]
    assert "| composition_error_z | -0.4669 |" in parent.data.tags[NOTE]


def test_the_summary_of_the_report_describes_the_whole_pipeline(place):
    page, picture = place.root / "report.html", _picture(place.root / "knowledge.png")
    page.write_text("<html>")
    with _stage() as tracker:
        tracker.log_headline({"lora_recall": 0.5})
    with open_stage_run("report", "demo", params={}, outs=[], study="smoke") as tracker:
        tracker.log_page(page, [Summary("nullspace", ["lora recalls 50.0% of the old facts."], picture)])
    (parent,) = place.runs("pipeline")
    text = parent.data.tags[NOTE]
    assert "### nullspace\n\nlora recalls 50.0% of the old facts." in text
    assert "| lora_recall | 0.5 |" in text
    assert f"description%2Fknowledge.png&run_uuid={parent.info.run_id}" in text
    artifacts = {f.path for f in place.client().list_artifacts(parent.info.run_id)}
    assert artifacts == {"report.html", "description"}


def test_a_run_that_found_nothing_has_no_description(place):
    with open_run("rotation", "x", params={}):
        pass
    assert NOTE not in place.runs("rotation")[0].data.tags
    assert note("r", "", {}) == ""


def test_a_stage_and_a_command_record_what_they_read(place):
    import mlflow

    rows = Path("data/rows.jsonl")
    rows.parent.mkdir()
    rows.write_text("{}\n{}\n")
    with _stage(inputs=[rows]), open_run("nullspace", "train", params={}, inputs=[rows, "no such"]):
        pass
    for experiment, name in (("rotation", "data/rows.jsonl"), ("nullspace", "rows.jsonl")):
        (run,) = place.runs(experiment)
        (found,) = [given.dataset for given in run.inputs.dataset_inputs]
        assert (found.name, found.digest, found.source_type) == (name, md5_file(rows), "local")
        assert json.loads(found.profile) == {"num_rows": 2, "num_bytes": 6}
        assert mlflow.data.get_source(run.inputs.dataset_inputs[0]).load() == str(
            rows.absolute()
        )  # MLflow's own reader


@pytest.mark.parametrize(("wanted", "recorded"), [("on", True), ("off", False), (None, False)])
def test_system_metrics_on_wish(place, monkeypatch, wanted, recorded):
    monkeypatch.delenv("TRACKING_SYSTEM", raising=False)
    if wanted:
        monkeypatch.setenv("TRACKING_SYSTEM", wanted)
    monkeypatch.setattr("subspacelab.tracking.runs.watched_system", lambda log: _WATCH(log, seconds=0.05))
    with open_run("rotation", "x", params={}) as tracker:
        time.sleep(0.5)
        tracker.log_metrics({"loss": 1.0})
    (run,) = place.runs("rotation")
    names = {name for name in run.data.metrics if name.startswith("system/")}
    assert ("system/cpu_utilization_percentage" in names) is recorded
    if recorded:
        assert 1 < run.data.metrics["system/process_memory_usage_megabytes"] < 1e5
        assert 0 < run.data.metrics["system/system_memory_usage_percentage"] <= 100
        points = place.client().get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        assert len(points) > 1
        assert sorted(p.step for p in points) == list(range(len(points)))


def test_memory_of_gpus_is_that_of_those_that_are_in_use(monkeypatch):
    class Cuda:
        is_initialized, device_count, mem_get_info = (
            staticmethod(f) for f in (lambda: True, lambda: 2, lambda n: ((3 - n) * 10**9, 4 * 10**9))
        )

    class Torch:
        cuda = Cuda

    monkeypatch.setitem(sys.modules, "torch", Torch)
    found = []
    with system.watched_system(lambda metrics, step: found.append(metrics), seconds=0.01):
        time.sleep(0.2)
    assert found[0]["system/gpu_0_memory_usage_megabytes"] == 1000
    assert found[0]["system/gpu_1_memory_usage_percentage"] == 50
    monkeypatch.setattr(Cuda, "is_initialized", lambda: False)
    assert system._gpus() == {}


_WATCH = system.watched_system
