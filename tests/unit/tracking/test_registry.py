"""The model registry: a version for each model, and `best` only ever at the best."""

import json
from pathlib import Path

import pytest

from subspacelab.tracking import ModelFiles
from subspacelab.tracking.mlflow_records import deliver
from subspacelab.tracking.mlflow_tracker import MlflowTracker, RunPlace, experiment_id
from subspacelab.tracking.outbox import Refused
from subspacelab.tracking.registry import LINKED, METRIC, VALUE


@pytest.fixture
def client(place):
    return place.client()


def _register(client, place, run_id: str, name: str, value: float | None) -> None:
    headline = {} if value is None else {METRIC: "val_cosine", VALUE: str(value)}
    labels = {"study": "demo", "dvc.exp.name": "brave-owl"} | headline
    deliver(client, place.uri, {"run_id": run_id, "version": "lowrank-demo", "of_model": name, "labels": labels})


def test_best_is_the_largest_and_latest_the_newest_and_each_model_is_registered_once(client, place):
    from mlflow.exceptions import MlflowException

    home = experiment_id(client, place.uri, "lowrank")
    run_id = client.create_run(home).info.run_id
    models = {name: client.create_logged_model(home, name, run_id).model_id for name in ("a", "b", "c", "d")}
    by_hand = {"name": "mine", "version": 1}
    client.set_logged_model_tags(models["d"], {LINKED: json.dumps([by_hand])})
    _register(client, place, run_id, "a", None)
    with pytest.raises(MlflowException):  # without a headline metric none is the best
        client.get_model_version_by_alias("lowrank-demo", "best")
    client.set_model_version_tag("lowrank-demo", "1", METRIC, "val_cosine")  # as a person may
    client.set_model_version_tag("lowrank-demo", "1", VALUE, "good")
    for name, value in (("b", -1.0), ("c", 0.9), ("d", 0.7), ("b", 2.0)):
        _register(client, place, run_id, name, value)
    best = client.get_model_version_by_alias("lowrank-demo", "best")
    latest = client.get_model_version_by_alias("lowrank-demo", "latest")
    assert (int(best.version), best.run_id, best.source) == (3, run_id, f"models:/{models['c']}")
    assert (int(latest.version), latest.source) == (4, f"models:/{models['d']}")
    assert best.tags["dvc.exp.name"] == "brave-owl"
    linked = {name: json.loads(client.get_logged_model(models[name]).tags[LINKED]) for name in "cd"}
    assert linked["c"] == [{"name": "lowrank-demo", "version": best.version}]  # as MLflow's own register_model does
    assert linked["d"] == [by_hand, {"name": "lowrank-demo", "version": latest.version}]
    assert "of the study demo" in client.get_registered_model("lowrank-demo").description
    with pytest.raises(Refused, match="has no model 'other'"):
        _register(client, place, run_id, "other", 3.0)


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
