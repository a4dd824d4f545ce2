"""A real MLflow server on loopback: runs arrive, and its death costs no work."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from subspacelab.cli import main
from subspacelab.tracking import open_stage_run, ui_command
from subspacelab.tracking.dvc_files import md5_file
from subspacelab.tracking.store import require_server

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def _serving(place, port: int) -> Iterator[tuple[str, int]]:
    """URI and process group of a server over the place's store, started with the command of `subspacelab ui`."""
    command, environment, _ = ui_command("127.0.0.1", port)
    with open(place.root / "server.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        uri = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(uri)
            yield uri, process.pid
        finally:
            _kill(process.pid)
            process.wait()


@pytest.fixture
def server(place) -> Iterator[tuple[str, int]]:
    """URI and process group of a server over the place's store."""
    with _serving(place, _free_port()) as started:
        yield started


def _wait_until_ready(uri: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            return require_server(uri, seconds=1)
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_runs_arrive_through_a_server(place, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    picture = place.root / "p.png"
    picture.write_bytes(b"png")
    with open_stage_run("s", "rotation", params={"rank": 8}, outs=[picture], study="demo", inputs=[picture]) as tracker:
        place.client().create_logged_model(
            place.client().get_run(tracker.run_id).info.experiment_id, "m", tracker.run_id
        )
        tracker._outbox.send({"run_id": tracker.run_id, "version": "m-demo", "of_model": "m", "labels": {}})
        tracker.log_metrics({"loss": float("nan")}, 0)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_artifact(picture)
    (run,), (parent,) = place.runs("rotation"), place.runs("pipeline")
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert (run.data.params, run.data.metrics) == ({"rank": "8"}, {"loss": 1.0})
    assert [d.dataset.digest for d in run.inputs.dataset_inputs] == [md5_file(picture)]
    assert place.client().get_model_version_by_alias("m-demo", "latest").run_id == run.info.run_id
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert len(list((place.root / "mlruns" / "artifacts").rglob("p.png"))) == 1


_OUTLIVES_THE_SERVER = """
import sys
from pathlib import Path
from subspacelab.tracking import open_run
with open_run("rotation", "x", params={"rank": 8}) as tracker:
    print("ready", flush=True)
    sys.stdin = open("go")  # blocks until the server is dead
    sys.stdin.read()
    for step in range(2000):
        tracker.log_metrics({"loss": 1.0}, step)
    Path("result").write_text("whole")
    tracker.log_artifact(Path("result"))
"""


def test_server_that_dies_in_mid_run_costs_no_work(place, server, wait_for, monkeypatch, capsys):
    uri, group = server
    os.mkfifo(place.root / "go")
    door = place.start(_OUTLIVES_THE_SERVER, MLFLOW_TRACKING_URI=uri)
    wait_for(door, "ready")
    _kill(group)
    start = time.monotonic()
    (place.root / "go").write_text("go")
    errors = door.communicate(timeout=120)[1].splitlines()
    assert time.monotonic() - start < 60
    assert door.returncode == 0, errors
    assert (place.root / "result").read_text() == "whole"
    assert len(errors) == 2, errors
    assert "the work goes on" in errors[0]
    assert "no result is lost" in errors[1]
    (file,) = (place.root / ".cache" / "untracked").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [metric["step"] for record in records for metric in record.get("metrics", [])]
    assert steps == list(range(2000))
    assert records[-1]["status"] == "FINISHED"

    (place.root / "result").unlink()
    with _serving(place, int(uri.rpartition(":")[2])):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(SystemExit) as end:
            main(["runs", "sync"])
        assert end.value.code == 1  # no project with experiments here; the records come first
        assert "dvc.yaml is missing" in capsys.readouterr().err
        (run,) = place.runs("rotation")
        assert run.info.status == "FINISHED"
        assert len(place.client().get_metric_history(run.info.run_id, "loss")) == 2000
    assert len(list((place.root / "mlruns" / "artifacts").rglob("result"))) == 1
    assert not file.exists()
