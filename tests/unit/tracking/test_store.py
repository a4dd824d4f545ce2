"""Where the store is, and that eight processes may open it at once."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from subspacelab.tracking import main_root, open_run, store_uri, ui_command
from subspacelab.tracking.store import require_server, shown, without_secrets


def test_main_root_is_dvc_root_only_when_it_is_one(tmp_path, monkeypatch):
    (tmp_path / "main" / ".dvc").mkdir(parents=True)
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "clone" / "deep")
    assert main_root() == tmp_path / "clone"
    monkeypatch.setenv("DVC_ROOT", "/nonexistent")
    assert main_root() == tmp_path / "clone"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert main_root() == tmp_path / "main"


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("", "sqlite:///{root}/mlruns/mlflow.db"),
        ("sqlite:///a/b.db", "sqlite:///{root}/a/b.db"),
        ("sqlite:////x/b.db", "sqlite:////x/b.db"),
        ("file:runs", "file://{root}/runs"),
        ("file:///runs", "file:///runs"),
        ("runs", "file://{root}/runs"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
    ],
)
def test_relative_stores_are_made_absolute(bare_place, monkeypatch, given, uri):
    (bare_place.root / "deep").mkdir()
    monkeypatch.chdir(bare_place.root / "deep")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store_uri() == uri.format(root=bare_place.root)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://u:secret@host:1/x", "server https://host:1/x"),
        ("https://u:sec@ret@host:1/x?token=secret#secret", "server https://host:1/x"),
        ("https://u:1/secret@host", "server https://host"),
        ("postgresql+psycopg2://u:secret@host/db?password=secret", "store postgresql+psycopg2://host/db"),
        ("sqlite:////home/me@work/mlflow.db", "store sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(uri, said):
    assert shown(uri) == f"the MLflow {said}"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("http://me:p%40ss%2F@host:1/x", {"USERNAME": "me", "PASSWORD": "p@ss/"}),
        ("http://sesame@host:1/x", {"TOKEN": "sesame"}),
        ("http://:sesame@host:1/x", {"TOKEN": "sesame"}),
        ("http://host:1/x", {}),
    ],
)
def test_credentials_of_an_address_are_sent_and_stay_out_of_it(bare_place, monkeypatch, given, sent):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store_uri() == store_uri() == os.environ["MLFLOW_TRACKING_URI"] == "http://host:1/x"
    found = {key: os.environ.get(f"MLFLOW_TRACKING_{key}") for key in ("USERNAME", "PASSWORD", "TOKEN")}
    assert {key: value for key, value in found.items() if value} == sent
    said = without_secrets(f"no: {' '.join(sent.values())} at {given}\x1b[2J\nx")
    assert said == f"no: {' '.join('***' for _ in sent)} at http://host:1/x".replace("  ", " ") + r"\x1b[2J x"


def test_an_address_with_a_password_that_is_not_quoted_does_not_show_it(bare_place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:se/cret@host")
    with pytest.raises(ValueError) as caught:
        store_uri()
    assert str(caught.value).startswith("MLFLOW_TRACKING_URI: its port is no number; in a user or password write / as")
    assert not {"me:", "cret"} & set(str(caught.value).split())


def test_a_database_that_refuses_does_not_show_its_password(bare_place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+nosuch://me:s3cret@host/db")
    with pytest.raises((ValueError, ImportError)) as caught, open_run("e", "x", params={}):
        pytest.fail("work began")
    assert "s3cret" not in str(caught.value)


def test_dead_server_fails_in_seconds_in_one_line_before_any_work(bare_place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    with (
        pytest.raises(ValueError, match=r"http://127.0.0.1:9 does not answer.*--no-track") as caught,
        open_run("e", "x", params={}),
    ):
        pytest.fail("work began")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def test_server_without_a_port_is_refused_too():
    with pytest.raises(ValueError, match="does not answer"):
        require_server("http://127.0.0.1:1/prefix/", seconds=1)


def test_file_store_is_refused_in_one_line(bare_place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "runs")
    with pytest.raises(ValueError, match="cannot be used.*maintenance mode") as caught, open_run("e", "x", params={}):
        pytest.fail("work began")
    assert "\n" not in str(caught.value)


def test_broken_database_is_one_line(bare_place):
    (bare_place.root / "mlruns").mkdir()
    (bare_place.root / "mlruns" / "mlflow.db").write_text("this is not a database, and longer than its header")
    with pytest.raises(ValueError, match="mlflow.db cannot be used") as caught, open_run("e", "x", params={}):
        pytest.fail("work began")
    assert "\n" not in str(caught.value)


def test_a_database_that_cannot_be_opened_fails_at_once(bare_place):
    (bare_place.root / "mlruns" / "mlflow.db").mkdir(parents=True)
    start = time.monotonic()
    with pytest.raises(IsADirectoryError, match=r"mlflow\.db"), open_run("e", "x", params={}):
        pytest.fail("work began")
    assert time.monotonic() - start < 10  # MLflow would try for a minute and a half


def test_deleted_experiment_comes_back(place):
    with open_run("rotation", "one", params={}):
        pass
    client = place.client()
    client.delete_experiment(client.get_experiment_by_name("rotation").experiment_id)
    with open_run("rotation", "two", params={}):
        pass
    assert len(place.runs("rotation")) == 2


def test_ui_command_makes_the_store_and_refuses_a_server(bare_place, monkeypatch):
    command, environment, page = ui_command("127.0.0.1", 5001)
    pipeline = bare_place.client().get_experiment_by_name("pipeline").experiment_id
    assert page == f"http://127.0.0.1:5001/#/experiments/{pipeline}/runs?workflowType=machine_learning"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == bare_place.uri
    assert not any("sqlite" in word for word in command)
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert (bare_place.root / "mlruns" / "mlflow.db").exists()
    monkeypatch.setattr("subspacelab.tracking.runs.require_server", lambda uri: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:p@host:5000")
    with pytest.raises(ValueError, match="http://host:5000: open that address"):
        ui_command("127.0.0.1", 5001)


_ONE_RUN = """
from subspacelab.tracking import open_stage_run
with open_stage_run("s", "rotation", params={"rank": 8}, outs=[], study="demo") as tracker:
    tracker.log_metrics({"loss": 1.0})
"""


@pytest.mark.slow
def test_four_processes_open_a_store_that_does_not_exist_yet(bare_place):
    environment = {"DVC_EXP_NAME": "brave-owl", "DVC_EXP_BASELINE_REV": "0123456789", "DVC_STAGE": "s"}
    doors = [bare_place.start(_ONE_RUN, **environment) for _ in range(4)]
    errors = [door.communicate()[1] for door in doors]
    assert [door.returncode for door in doors] == [0] * 4, errors
    assert errors == [""] * 4
    children = bare_place.runs("rotation")
    assert [run.info.status for run in children] == ["FINISHED"] * 4
    assert all(run.data.metrics == {"loss": 1.0} for run in children)
    (parent,) = bare_place.runs("pipeline")  # one experiment, one parent, whoever came first
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(p.name for p in Path("mlruns").iterdir()) == [".gitignore", ".lock", "mlflow.db"]
    with sqlite3.connect("mlruns/mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
