"""The model registry: a version for each model, and `best` only ever at the best."""

from pathlib import Path

import pytest

from subspacelab.tracking import ModelFiles
from subspacelab.tracking.mlflow_tracker import MlflowTracker, RunPlace, experiment_id
from subspacelab.tracking.outbox import Refused
from subspacelab.tracking.registry import METRIC, VALUE, register


@pytest.fixture
def client(place):
    return place.client()


def _log(client, place, name: str, value: float | None) -> str:
    """A run with a logged model, registered as `lowrank-demo`; returns the run's id."""
    home = experiment_id(client, place.uri, "lowrank")
    run_id = client.create_run(home).info.run_id
    client.create_logged_model(home, name, run_id)
    headline = {} if value is None else {METRIC: "val_cosine", VALUE: str(value)}
    labels = {"study": "demo", "dvc.exp.name": "brave-owl"} | headline
    register(client, place.uri, run_id, name, "lowrank-demo", labels)
    return run_id


def test_best_is_the_largest_and_latest_the_newest(client, place):
    runs = [_log(client, place, "mlp", value) for value in (0.5, 0.9, 0.7)]
    best = client.get_model_version_by_alias("lowrank-demo", "best")
    latest = client.get_model_version_by_alias("lowrank-demo", "latest")
    assert (best.version, best.run_id) == ("2", runs[1])
    assert (latest.version, latest.run_id) == ("3", runs[2])
    assert best.tags["dvc.exp.name"] == "brave-owl"
    assert best.source == f"models:/{client.get_logged_model(best.model_id).model_id}"
    assert "largest val_cosine" in client.get_registered_model("lowrank-demo").description


def test_a_model_without_a_headline_is_never_best(client, place):
    from mlflow.exceptions import MlflowException

    _log(client, place, "mlp", None)
    with pytest.raises(MlflowException):
        client.get_model_version_by_alias("lowrank-demo", "best")
    _log(client, place, "mlp", -1.0)
    assert client.get_model_version_by_alias("lowrank-demo", "best").version == "2"


def test_the_same_model_is_registered_once(client, place):
    run_id = _log(client, place, "mlp", 0.5)
    register(client, place.uri, run_id, "mlp", "lowrank-demo", {"study": "demo"})
    assert len(client.search_model_versions("name = 'lowrank-demo'")) == 1
    with pytest.raises(ValueError, match="has no model 'other'"):
        register(client, place.uri, run_id, "other", "lowrank-demo", {})


@pytest.mark.parametrize(
    ("metrics", "labelled"), [({"cosine": 0.5}, True), ({"cosine": float("nan")}, False), ({}, False)]
)
def test_a_tracked_model_asks_to_be_registered(client, place, monkeypatch, metrics, labelled):
    sent = []
    monkeypatch.setattr("subspacelab.tracking.mlflow_tracker.deliver", lambda client, uri, record: sent.append(record))
    tracker = MlflowTracker(client, place.uri, RunPlace("r", labels={"study": "my study:1"}))
    tracker.log_model(
        ModelFiles("m", Path("f"), Path("c.py"), [], {}, metrics, registered="lowrank", headline="cosine")
    )
    tracker.log_model(ModelFiles("m", Path("f"), Path("c.py"), []))
    records = [record for record in sent if "version" in record]
    assert [record["version"] for record in records] == ["lowrank-my study_1"]
    assert records[0]["labels"].get(VALUE) == ("0.5" if labelled else None)


def test_a_registry_that_refuses_stops_no_work(client, place, monkeypatch, capsys):
    def refuse(*_):
        raise Refused("no rights")

    monkeypatch.setattr("subspacelab.tracking.mlflow_records.register", refuse)
    home = experiment_id(client, place.uri, "lowrank")
    tracker = MlflowTracker(client, place.uri, client.create_run(home).info.run_id)
    tracker._outbox.send({"run_id": tracker.run_id, "version": "v", "of_model": "m", "labels": {}})
    tracker.end("FINISHED")
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "no rights" in capsys.readouterr().err
