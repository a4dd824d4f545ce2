"""Runs in a real store: what they carry, how they end, and who ends those that could not."""

import json
import math
import os
import signal
import subprocess
import threading
from pathlib import Path

import pandas as pd
import psutil
import pytest

from subspacelab.tracking import open_run, open_stage_run
from subspacelab.tracking.context import Terminated, process_tags
from subspacelab.tracking.dvc_files import md5_file
from subspacelab.tracking.runs import reap_dead_runs


def _stage(stage: str = "decompose", **given):
    arguments = {"params": {"rank": 8}, "outs": [], "study": "smoke"} | given
    return open_stage_run(stage, "rotation", **arguments)


def _in_experiment(monkeypatch, name: str = "brave-owl", stage: str = "../../dvc.yaml:decompose@base") -> None:
    monkeypatch.setenv("DVC_EXP_NAME", name)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789abcdef")
    monkeypatch.setenv("DVC_STAGE", stage)


def test_a_run_carries_what_it_was_told(place):
    picture = place.root / "p.png"
    picture.write_bytes(b"png")
    (place.root / "many").mkdir()
    (place.root / "many" / "a.txt").write_text("a")
    with open_run("rotation", "hand", params={"rank": 8, "train": {"lr": 0.1}}, tags={"why": "test"}) as tracker:
        for step in range(1500):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step)
        tracker.log_headline({"cosine": 0.5})
        tracker.log_artifact(picture, "pictures")
        tracker.log_artifact(place.root / "many", "many")
        tracker.log_table(pd.DataFrame({"layer": ["q", None], "angle": [1.5, math.nan]}), "angles")
    (run,) = place.runs("rotation")
    assert (run.info.run_name, run.info.status, run.info.run_id) == ("hand", "FINISHED", tracker.run_id)
    assert run.data.params == {"rank": "8", "train.lr": "0.1"}
    history = place.client().get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1500))
    assert run.data.metrics["cosine"] == 0.5
    assert process_tags().items() <= run.data.tags.items()
    assert run.data.tags["why"] == "test"
    files = {
        f.path for folder in (None, "pictures", "many") for f in place.client().list_artifacts(run.info.run_id, folder)
    }
    assert files == {"pictures", "pictures/p.png", "many", "many/a.txt", "angles.json"}
    text = (place.root / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "angles.json").read_text()
    assert json.loads(text) == {"columns": ["layer", "angle"], "data": [["q", 1.5], [None, None]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "angles.json", "type": "table"}]


def test_long_values_are_cut_and_bad_names_refused_at_once(place):
    with (
        open_run("rotation", "x", params={"long": "v" * 9000}) as tracker,
        pytest.raises(ValueError, match="metric name 'a@b'"),
    ):
        tracker.log_metrics({"a@b": 1.0})
    (run,) = place.runs("rotation")
    assert len(run.data.params["long"]) == 6000
    assert run.info.status == "FINISHED"


def test_nonfinite_metrics_are_gaps_with_a_tag(place):
    with open_run("rotation", "x", params={}) as tracker:
        for step, value in enumerate([1.0, math.inf, math.nan, 2.0]):
            tracker.log_metrics({"loss": value}, step)
    (run,) = place.runs("rotation")
    points = {p.step: p.value for p in place.client().get_metric_history(run.info.run_id, "loss")}
    assert {step: math.isnan(value) for step, value in points.items()} == {0: False, 1: True, 2: True, 3: False}
    assert run.data.tags["nonfinite.loss"] == "nan at step 2"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("no convergence"), "FAILED"),
        (SystemExit(3), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_status_says_how_it_ended_and_metrics_survive(place, error, status):
    def work() -> None:
        with _stage() as tracker:
            tracker.log_metrics({"loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        work()
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    assert (run.info.status, parent.info.status) == (status, status)
    assert run.data.metrics == {"loss": 1.0}
    assert run.data.tags.get("error") == (
        "RuntimeError: no convergence"
        if isinstance(error, RuntimeError)
        else ("SystemExit: 3" if status == "FAILED" else None)
    )
    assert run.info.end_time is not None


def test_sigterm_ends_the_run_and_handlers_come_back(place):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    def work() -> None:
        with _stage():
            assert signal.getsignal(signal.SIGTERM) is not before[0]
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on after SIGTERM")

    with pytest.raises(Terminated) as caught:
        work()
    assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before
    assert place.runs("rotation")[0].info.status == "KILLED"


def test_a_thread_may_track_too(place):
    def work() -> None:
        with open_run("rotation", "x", params={}) as tracker:
            tracker.log_metrics({"loss": 1.0})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert place.runs("rotation")[0].info.status == "FINISHED"


def test_stage_in_an_experiment_leads_back_to_dvc(place, monkeypatch):
    _in_experiment(monkeypatch)
    out = Path("reports/m.json")
    out.parent.mkdir()
    with _stage(outs=[out, Path("never")], pipeline_params={"rank": 8, "k": 4}) as tracker:
        out.write_text("{}")
        tracker.log_headline({"iou": 0.5})
        tracker.log_metrics({"detail": 1.0})
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    expected = {
        "dvc.stage": "decompose@base",
        "dvc.mode": "exp",
        "dvc.exp.name": "brave-owl",
        "dvc.baseline_rev": "0123456789abcdef",
        "dvc.apply": "dvc exp apply brave-owl",
        "study": "smoke",
        "pipeline.id": "exp:brave-owl@01234567",
        "mlflow.parentRunId": parent.info.run_id,
        "dvc.out.reports/m.json": md5_file(out),
    }
    assert expected.items() <= run.data.tags.items()
    assert not any("never" in key for key in run.data.tags)
    assert run.info.run_name == "decompose@base"
    assert parent.info.run_name == "brave-owl"
    assert parent.data.params == {"rank": "8", "k": "4"}
    assert parent.data.metrics == {"iou": 0.5}
    assert parent.data.tags["dvc.apply"] == "dvc exp apply brave-owl"
    assert run.data.metrics == {"iou": 0.5, "detail": 1.0}


def test_a_page_is_recorded_with_the_stage_and_with_the_pipeline(place, monkeypatch):
    _in_experiment(monkeypatch)
    page = place.root / "report.html"
    page.write_text("<p>")
    with _stage() as tracker:
        tracker.log_page(page)
    for (run,) in (place.runs("rotation"), place.runs("pipeline")):
        assert [file.path for file in place.client().list_artifacts(run.info.run_id)] == ["report.html"]


def test_stages_of_one_pipeline_share_a_parent(place, monkeypatch):
    _in_experiment(monkeypatch)
    for stage, params in (("a", {"rank": 8}), ("b", {"rank": 9, "k": 2})):
        with _stage(stage, params=params) as tracker:
            (parent,) = place.runs("pipeline")
            assert parent.info.status == "RUNNING"
            tracker.log_headline({f"{stage}.iou": 1.0})
    (parent,) = place.runs("pipeline")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"rank": "8", "k": "2"}  # a param has one value: the first
    assert parent.data.metrics == {"a.iou": 1.0, "b.iou": 1.0}
    assert len({run.data.tags["mlflow.parentRunId"] for run in place.runs("rotation")}) == 1


def test_parent_stays_failed_within_one_dvc_process_only(place, monkeypatch):
    _in_experiment(monkeypatch)
    with pytest.raises(RuntimeError), _stage():
        raise RuntimeError
    with _stage():
        pass
    assert place.runs("pipeline")[0].info.status == "FAILED"
    place.client().set_tag(place.runs("pipeline")[0].info.run_id, "pipeline.owner", "an earlier dvc process")
    with _stage():
        pass
    assert place.runs("pipeline")[0].info.status == "FINISHED"


def test_by_hand_there_is_no_mode_and_the_door_is_the_pipeline(place):
    with _stage():
        pass
    (run,) = place.runs("rotation")
    assert "dvc.mode" not in run.data.tags
    assert run.data.tags["pipeline.id"].startswith(f"hand:{os.getpid()}-")


@pytest.mark.parametrize(("folder", "mode"), [("standalone/tmp1", "temp"), ("tmp1", "queue")])
def test_temporary_copies_record_in_the_main_store(place, monkeypatch, folder, mode):
    copy = place.root / ".dvc" / "tmp" / "exps" / folder
    (copy / ".git").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(place.root))
    _in_experiment(monkeypatch)
    with _stage():
        pass
    assert place.runs("rotation")[0].data.tags["dvc.mode"] == mode
    assert not (copy / "mlruns").exists()


def test_commit_and_dirt_are_tags(place):
    def git(*words: str) -> str:
        person = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        return subprocess.run(["git", *person, *words], check=True, capture_output=True, text=True).stdout.strip()

    (place.root / ".git").rmdir()
    Path("a").write_text("1")
    git("init", "-q")
    git("add", "a")
    git("commit", "-qm", "a")
    with _stage():
        Path("a").write_text("2")
    with _stage():
        pass
    second, first = place.runs("rotation")
    assert first.data.tags["git.commit"] == second.data.tags["git.commit"] == git("rev-parse", "HEAD")
    assert (first.data.tags["git.dirty"], second.data.tags["git.dirty"]) == ("false", "true")


def test_reaper_ends_dead_runs_of_this_host_only(place):
    client = place.client()
    experiment = client.create_experiment("rotation")
    alive = process_tags()
    gone = subprocess.Popen(["true"])
    gone.wait()
    tags = {
        "alive": alive,
        "dead": alive | {"pid": str(gone.pid)},
        "pid used again": alive | {"pid.start": "1.0"},
        "other host": alive | {"host": "elsewhere", "pid": str(gone.pid)},
        "of other software": {},
    }
    ids = {name: client.create_run(experiment, tags=given).info.run_id for name, given in tags.items()}
    assert set(reap_dead_runs(client)) == {ids["dead"], ids["pid used again"]}
    statuses = {name: client.get_run(run_id).info.status for name, run_id in ids.items()}
    assert [name for name, status in statuses.items() if status == "KILLED"] == ["dead", "pid used again"]
    assert statuses["alive"] == "RUNNING"


def test_unbuffered_time_is_short(place, monkeypatch):
    with open_run("rotation", "x", params={}) as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        assert place.runs("rotation")[0].data.metrics == {}
        monkeypatch.setattr("subspacelab.tracking.mlflow_tracker._EVERY", 0.0)
        tracker.log_metrics({"loss": 2.0}, 1)
        assert place.runs("rotation")[0].data.metrics == {"loss": 2.0}


def test_a_missing_artifact_is_an_error_of_ours(place):
    with pytest.raises(ValueError, match="none.png: no such file"), open_run("rotation", "x", params={}) as tracker:
        tracker.log_artifact(Path("none.png"))
    assert place.runs("rotation")[0].info.status == "FAILED"


def test_a_deleted_run_does_not_stop_the_work(place, capsys):
    with open_run("rotation", "x", params={}) as tracker:
        place.client().delete_run(tracker.run_id)
        tracker.log_metrics({"loss": 1.0})
        tracker.set_tags({"k": "v"})
    kept = (place.root / ".cache" / "untracked" / f"{tracker.run_id}.jsonl").read_text()
    assert '"loss"' in kept
    assert "no result is lost" in capsys.readouterr().err


_SLEEPING = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and hand that on
from subspacelab.tracking import open_stage_run
with open_stage_run("s", "rotation", params={"rank": 8}, outs=[], study="demo") as tracker:
    tracker.log_metrics({"loss": 1.0})
    print("ready", flush=True)
    time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_door_told_to_stop_is_killed_in_the_store(place, wait_for, number, code):
    door = place.start(_SLEEPING)
    wait_for(door, "ready")
    door.send_signal(number)
    assert door.wait(30) == code
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    assert (run.info.status, parent.info.status) == ("KILLED", "KILLED")
    assert run.data.metrics == {"loss": 1.0}


@pytest.mark.slow
def test_a_door_killed_outright_is_reaped_at_the_next_start(place, wait_for):
    door = place.start(_SLEEPING)
    wait_for(door, "ready")
    assert psutil.pid_exists(door.pid)
    door.kill()  # not waited for: a zombie counts as dead
    psutil.Process(door.pid).status()
    assert [run.info.status for run in place.runs("rotation") + place.runs("pipeline")] == ["RUNNING"] * 2
    with _stage("next"):
        pass
    door.wait()
    statuses = {run.info.run_name: run.info.status for run in place.runs("rotation")}
    assert statuses == {"s": "KILLED", "next": "FINISHED"}
    assert sorted(run.info.status for run in place.runs("pipeline")) == ["FINISHED", "KILLED"]
