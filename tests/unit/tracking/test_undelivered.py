"""What a dead store did not take arrives afterwards: the run then looks as if the store had been there all along."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.tracking.test_mlflow_tracker import _model

from subspacelab.core.ownership import sole_writer
from subspacelab.tracking import open_run, open_stage_run
from subspacelab.tracking.datasets import DataSet
from subspacelab.tracking.mlflow_records import deliver
from subspacelab.tracking.notes import NOTE
from subspacelab.tracking.outbox import Refused, Unreachable
from subspacelab.tracking.undelivered import deliver_undelivered


@pytest.fixture
def dead_store(monkeypatch):
    """Lets the store die and come back, as far as records are concerned."""

    def switch(failure: Exception | None) -> None:
        def fail(client, uri, record):
            if failure:
                raise failure
            deliver(client, uri, record)

        for module in ("mlflow_tracker", "undelivered"):
            monkeypatch.setattr(f"subspacelab.tracking.{module}.deliver", fail)

    return switch


def test_params_metrics_tags_tables_pictures_and_status_arrive_later(place, dead_store):
    import pandas as pd

    picture = place.root / "p.png"
    picture.write_bytes(b"png")
    with open_stage_run("s", "rotation", params={"rank": 8}, outs=[picture], study="demo") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.flush()
        dead_store(Unreachable("gone"))
        tracker.log_inputs([DataSet("rows", "d" * 32, "data/rows.jsonl", rows=3, num_bytes=9)])
        tracker.log_metrics({"loss": float("nan")}, 1)
        tracker.log_metrics({"loss": 3.0}, 2)
        tracker.log_headline({"iou": 0.5})
        tracker.log_artifact(picture, "pictures")
        tracker.log_table(pd.DataFrame({"a": [1]}), "layers")
    picture.unlink()
    assert place.runs("rotation")[0].info.status == "RUNNING"

    dead_store(None)
    client = place.client()
    (delivery,) = deliver_undelivered(client, place.uri)
    assert (delivery.run_id, delivery.refused) == (tracker.run_id, [])
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    assert run.info.status == "FINISHED"
    assert [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs] == [("rows", "d" * 32)]
    assert "| iou | 0.5 |" in run.data.tags[NOTE]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]
    assert run.data.metrics["iou"] == parent.data.metrics["iou"] == 0.5
    assert "dvc.out.p.png" not in run.data.tags  # relative outs only; absolute ones carry their whole path
    assert f"dvc.out.{picture}" in run.data.tags
    assert [a.path for a in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/p.png"]
    assert "layers.json" in {a.path for a in client.list_artifacts(run.info.run_id)}
    assert list((place.root / ".cache" / "untracked").iterdir()) == []
    assert deliver_undelivered(client, place.uri) == []


@pytest.mark.slow
def test_a_model_arrives_later_and_loads(place, dead_store, monkeypatch):
    import mlflow

    dead_store(Unreachable("gone"))
    model = _model(place.root, params={"train": {"lr": 0.1}}, metrics={"iou": 0.5}, step=3, files=["model.safetensors"])
    model = replace(model, registered="scales", headline="iou")
    package = place.root / "src" / "package"
    (package / "study").mkdir(parents=True)
    model = replace(
        model, code=model.code.rename(package / "study" / "mlflow_model.py"), pip_requirements=["safetensors==0.6"]
    )
    for module in ("outbox", "mlflow_records"):
        monkeypatch.setattr(f"subspacelab.tracking.{module}.PACKAGE", package)
    with open_run("demo", "train", params={}) as tracker:
        tracker.log_model(model)
    model.folder.rename(place.root / "elsewhere")
    dead_store(None)
    deliver_undelivered(place.client(), place.uri)
    (logged,) = place.client().search_logged_models([place.runs("demo")[0].info.experiment_id])
    assert (logged.name, logged.params) == ("scale", {"train.lr": "0.1"})
    folder = place.root / "mlruns" / "artifacts" / "models" / logged.model_id / "artifacts"
    assert mlflow.pyfunc.load_model(str(folder)).predict([2.0]) == [6.0]
    best = place.client().get_model_version_by_alias("scales", "best")
    assert (best.source, best.tags["headline.value"]) == (f"models:/{logged.model_id}", "0.5")


@pytest.mark.parametrize(("later", "status"), [("FINISHED", "FINISHED"), ("FAILED", "FAILED")])
def test_a_parent_ends_as_its_stages_did_whichever_record_came_late(place, dead_store, later, status):
    dead_store(Unreachable("gone"))
    with open_stage_run("first", "rotation", params={}, outs=[], study="demo"):
        pass
    dead_store(None)
    client = place.client()
    (parent,) = place.runs("pipeline")
    client.set_terminated(parent.info.run_id, "KILLED")  # as the reaper does
    second = client.create_run(parent.info.experiment_id, tags={"mlflow.parentRunId": parent.info.run_id})
    client.set_tag(second.info.run_id, "dvc.stage", "second")
    client.set_terminated(second.info.run_id, later)
    deliver_undelivered(client, place.uri)
    assert place.runs("rotation")[0].info.status == "FINISHED"
    assert client.get_run(parent.info.run_id).info.status == status


def test_what_is_refused_stays_and_what_is_away_stays_whole(place, dead_store):
    dead_store(Unreachable("gone"))
    with open_run("rotation", "x", params={"rank": 8}) as tracker:
        tracker.log_metrics({"loss": 1.0})
    (file,) = (place.root / ".cache" / "untracked").iterdir()
    before = [json.loads(line) for line in file.read_text().splitlines()]
    with pytest.raises(ValueError, match=f"gone.*0 record.*{tracker.run_id}"):
        deliver_undelivered(place.client(), place.uri)
    assert [json.loads(line) for line in file.read_text().splitlines()] == before
    dead_store(Refused("no such run"))
    (delivery,) = deliver_undelivered(place.client(), place.uri)
    assert (delivery.delivered, set(delivery.refused)) == (0, {"no such run"})
    assert [json.loads(line) for line in file.read_text().splitlines()] == before


@pytest.fixture
def left(place):
    """Writes a record of a run `a` to the file of what is left, and returns the file."""
    file = place.root / ".cache" / "untracked" / "a.jsonl"
    file.with_suffix("").mkdir(parents=True)

    def write(record: object) -> Path:
        file.write_text(f"{json.dumps({'run_id': 'a', 'tags': []})}\n{json.dumps(record)}\n")
        return file

    return write


MODEL = {
    "run_id": "a", "model": "m", "files": ".", "only": [], "code": "lowrank/mlflow_model.py", "pip_requirements": [],
    "params": {}, "metrics": {}, "step": 0, "tensors": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([1], "a list, not a record"),
        ({"tags": []}, "run_id: Field required"),
        ({"run_id": "x' or '1'='1", "tags": []}, "run_id: String should match"),
        ({"run_id": "a", "nosuch": 1}, "nosuch: Extra inputs"),
        ({"run_id": "a", "params": [{"key": "../x", "value": "y"}]}, "params.0.key: .*'../x' cannot be tracked"),
        ({"run_id": "a", "inputs": [{"name": "n"}]}, "inputs.0.digest: Field required"),
        ({"run_id": "a", "version": "x'y", "of_model": "m", "labels": {}}, "version: .*x'y.* cannot be tracked"),
        ({"run_id": "a", "status": "RUNNING", "ended": 0}, "status: Input should be"),
        ({"run_id": "a", "table": "../x.json", "rows": ""}, "table: .*'../x.json' cannot be tracked"),
        ({"run_id": "a", "artifact": "/etc/passwd", "into": None}, "/etc/passwd is, or leads, outside of"),
        ({"run_id": "a", "artifact": ".cache/untracked/a/../../../p", "into": None}, ".*p is, or leads, outside of"),
        ({"run_id": "a", "artifact": ".cache/untracked/a/link", "into": None}, ".*link is, or leads, outside of"),
        ({"run_id": "a", "artifact": ".cache/untracked/a/folder", "into": None}, ".*folder is, or leads, outside of"),
        ({"run_id": "a", "artifact": ".cache/untracked/a/p", "into": "../x"}, "into: .*'../x' cannot be tracked"),
        (MODEL | {"code": "/tmp/evil.py"}, "code: String should match"),
        (MODEL | {"code": "../lowrank/mlflow_model.py"}, "code: String should match"),
        (MODEL | {"only": [".."]}, "only.0: String should match"),
        (MODEL | {"only": ["a/b"]}, "only.0: String should match"),
        (MODEL | {"pip_requirements": ["-r /etc/passwd"]}, "pip_requirements.0: String should match"),
    ],
)
def test_what_is_no_record_or_names_what_is_not_its_own_is_refused_before_any_is_sent(left, monkeypatch, record, said):
    file = left(record)
    (file.with_suffix("") / "folder").mkdir()
    for link in ("link", "folder/link"):
        (file.with_suffix("") / link).symlink_to("/etc/hostname")
    monkeypatch.setattr("subspacelab.tracking.undelivered.deliver", lambda *_: pytest.fail("sent"))
    before = file.read_text()
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {said}.*; delete the line or the file"):
        deliver_undelivered(None, "")
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["..jsonl", "a b.jsonl", "link.jsonl", "pipe.jsonl"])
def test_a_file_that_no_run_wrote_is_no_file_of_records(left, name):
    file = left({"run_id": "a", "tags": []}).with_name(name)
    (file.parent / "link.jsonl").symlink_to("/etc/hostname") if name == "link.jsonl" else None
    os.mkfifo(file) if name == "pipe.jsonl" else file.touch()
    with pytest.raises(ValueError, match=r"no file of records; move it away|which is no plain name"):
        deliver_undelivered(None, "")


def test_two_deliveries_at_once_are_refused(left):
    file = left({"run_id": "a", "tags": []})
    with sole_writer(file.parent), pytest.raises(ValueError, match="another command is writing there"):
        deliver_undelivered(None, "")
