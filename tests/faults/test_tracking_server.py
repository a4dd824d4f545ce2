"""An MLflow server that answers badly: no result is lost, one line says so, and the records arrive later, once.

One that is down from the start is in tests/unit/tracking/test_store.py, one that dies in mid-run in
tests/integration/test_mlflow_server.py.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.broken_server import BrokenServer, serving
from tests.faults.workshop import run

from subspacelab.tracking import open_run, ui_command
from subspacelab.tracking.store import require_server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of its own, whose client waits two seconds and asks once."""
    before = dict(os.environ)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    os.environ |= {"TRACKING": "on", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server(place: Path) -> Iterator[BrokenServer]:
    """MLflow's own server behind one that can be broken."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    command, environment, _ = ui_command("127.0.0.1", port)
    with (place / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                require_server(f"http://127.0.0.1:{port}", seconds=1)
                break
            except ValueError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        with serving(port) as between:
            os.environ["MLFLOW_TRACKING_URI"] = between.uri
            yield between
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("mode", "said"), [("500", "cannot be used"), ("silent", "does not answer (timed out)")])
def test_a_server_that_answers_badly_from_the_start_is_one_line_before_any_work(mode: str, said: str) -> None:
    with serving() as broken:
        broken.mode = mode
        os.environ["MLFLOW_TRACKING_URI"] = broken.uri
        start = time.monotonic()
        with pytest.raises(ValueError) as caught, open_run("rotation", "x", params={"rank": 8}):
            pytest.fail("work began")
        assert time.monotonic() - start < 20
    assert said in str(caught.value)
    assert "run without tracking (TRACKING=off or --no-track)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_user_and_password_of_an_address_work_and_are_nowhere_to_be_read(
    place: Path, server: BrokenServer, capfd: pytest.CaptureFixture
) -> None:
    """Sent to the server, and neither printed nor stored, whether the records arrive at once, later or never."""
    server.mode = "auth"
    os.environ["MLFLOW_TRACKING_URI"] = server.uri.replace("http://", "http://me:s3cret%40%2F@")
    (place / "f").write_text("x")
    with pytest.raises(ValueError), open_run("rotation", "x", params={"rank": 8}) as tracker:
        tracker.log_artifact(place / "f")
        tracker.flush()
        server.mode = "500"
        tracker.log_metrics({"loss": 1.0})
        raise ValueError("http://me:s3cret%40%2F@host refused the password s3cret@/")
    (left,) = (place / ".cache" / "untracked").glob("*.jsonl")
    printed = "".join(capfd.readouterr())
    assert "s3cret" not in printed + left.read_text()
    server.mode = "auth"
    assert run("runs sync") == 1  # no project here: after the delivery
    printed = "".join(capfd.readouterr())
    assert "delivered" in printed
    assert "s3cret" not in printed
    files = [p for p in place.rglob("*") if p.is_file() and p.name != "server.log"]
    assert [p for p in files if b"s3cret" in p.read_bytes()] == []


@pytest.mark.parametrize("mode", ["500", "late"])
def test_a_server_that_goes_bad_in_mid_run_gets_its_records_later_and_once(
    place: Path, server: BrokenServer, capfd: pytest.CaptureFixture, mode: str
) -> None:
    from mlflow import MlflowClient

    with open_run("rotation", "x", params={"rank": 8}) as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.flush()
        capfd.readouterr()
        server.mode = mode
        for step in (1, 2):
            tracker.log_metrics({"loss": 1.0 + step}, step)
            tracker.flush()
        (place / "result").write_text("whole")
        tracker.log_artifact(place / "result")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "the work goes on and its records are kept" in lines[0]
    assert "no result is lost, and 'subspacelab runs sync' delivers them" in lines[1]
    kept = place / ".cache" / "untracked"
    assert [file.name for file in kept.glob("*.jsonl")] == [f"{tracker.run_id}.jsonl"]

    time.sleep(5)  # until late answers are out
    server.mode = "pass"
    (place / "result").unlink()
    for _ in range(2):  # the second time there is nothing left to deliver
        assert run("runs sync") == 1  # no project with experiments here; the records come first
        assert "dvc.yaml is missing" in capfd.readouterr().err
        assert list(kept.iterdir()) == []
        client = MlflowClient(server.uri)
        (found,) = client.search_runs([client.get_experiment_by_name("rotation").experiment_id])
        assert found.info.status == "FINISHED"
        history = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")]
        assert history == [(0, 1.0), (1, 2.0), (2, 3.0)]
        assert [a.path for a in client.list_artifacts(found.info.run_id)] == ["result"]
