"""Runs found by an experiment's name and by what they made."""

from types import SimpleNamespace

from subspacelab.pipeline.experiments import Experiment, _read
from subspacelab.pipeline.sync import RunIndex

EXPERIMENT = Experiment("owl", "e" * 40, "b" * 40, {}, {})
OUTS = {"train": {"model": "m1", "curve.csv": "c1"}, "scenes": {"data": "d1"}}
BASELINE = {"train": {"model": "m0", "curve.csv": "c0"}, "scenes": {"data": "d1"}}


def run(run_id: str, stage: str = "", name: str = "", status: str = "FINISHED", metrics=None, **tags: str):
    """A run as MLflow shows it; `outs` of OUTS[stage] are tagged unless given otherwise."""
    outs = {f"dvc.out.{path}": md5 for path, md5 in OUTS.get(stage, {}).items()}
    named = {"dvc.exp.name": name, "dvc.baseline_rev": EXPERIMENT.baseline} if name else {}
    all_tags = {"dvc.stage": stage} | outs | named | {key.replace("__", "."): value for key, value in tags.items()}
    info = SimpleNamespace(run_id=run_id, status=status)
    return SimpleNamespace(info=info, data=SimpleNamespace(tags=all_tags, metrics=metrics or {}))


def found(*runs):
    """Ids by kind, of EXPERIMENT."""
    links = RunIndex(runs).links(EXPERIMENT, OUTS, BASELINE)
    own, served = ({s: r.info.run_id for s, r in part.items()} for part in (links.own, links.served))
    return own, served, links.without


def test_a_changed_stage_is_linked_by_name_before_content_and_the_newest_first():
    assert found(run("newer", "train"), run("own", "train", "owl")) == ({"train": "own"}, {}, [])
    assert found(run("newer", "train", "cat"), run("older", "train")) == ({}, {"train": "newer"}, [])
    assert found(run("scenes", "scenes", "owl")) == ({}, {}, ["train"])  # a stage as in the baseline is not asked for


def test_a_run_that_made_other_bytes_or_did_not_finish_is_no_link():
    overwritten = run("old", "train", "owl")
    overwritten.data.tags["dvc.out.curve.csv"] = "c2"
    assert found(overwritten) == ({}, {}, ["train"])
    assert found(run("failed", "train", "owl", status="FAILED")) == ({}, {}, ["train"])
    assert found(run("other stage", "train", dvc__stage="copy")) == ({}, {}, ["train"])


def test_the_same_name_on_another_baseline_is_another_experiment():
    other = run("own", "train", "owl", dvc__baseline_rev="c" * 40)
    assert found(other) == ({}, {"train": "own"}, [])
    parent = run("parent", "", "owl", pipeline__role="parent")
    stranger = run("stranger", "", "owl", pipeline__role="parent", dvc__baseline_rev="c" * 40)
    links = RunIndex([stranger, parent]).links(EXPERIMENT, OUTS, BASELINE)
    assert [p.info.run_id for p in links.parents] == ["parent"]


def test_the_headline_is_what_stage_and_parent_share_over_all_stages():
    runs = [
        run("p", metrics={"cosine": 0.1, "iou": 0.2, "other": 1.0}, pipeline__role="parent"),
        run("t", "train", "cat", metrics={"cosine": 0.9, "loss": 3.0}, mlflow__parentRunId="p"),
        run("s", "scenes", metrics={"iou": 0.2}, mlflow__parentRunId="p"),
    ]
    assert RunIndex(runs).headline(EXPERIMENT, OUTS) == {"cosine": 0.9, "iou": 0.2}
    assert RunIndex([]).headline(EXPERIMENT, OUTS) == {}


def test_queued_and_failed_experiments_are_not_read():
    data = {
        "params": {"params.yaml": {"data": {"rank": 8, "train": {"lr": 0.1}}}, "s.yaml": {"data": {"n": 1}}},
        "metrics": {"m.json": {"data": {"a": {"mean": 0.5}, "ok": True, "text": "x"}}, "broken.json": {"error": {}}},
    }
    entry = {"name": "owl", "executor": None, "revs": [{"rev": "r", "data": data}]}
    read = _read(entry, "b")
    assert read == Experiment("owl", "r", "b", {"rank": "8", "train.lr": "0.1", "s.yaml:n": "1"}, {"a.mean": 0.5})
    assert _read(entry | {"executor": {"state": "running"}}, "b") is None
    assert _read(entry | {"revs": [{"rev": "r", "data": None}]}, "b") is None
