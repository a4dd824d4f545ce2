"""An MLflow store for each test, and processes that record in it; each conftest.py imports the fixtures it needs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Place:
    """A folder that stands for the main repository, with its store."""

    root: Path
    """The folder; the working directory of the test."""

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root}/mlruns/mlflow.db"

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, experiment: str) -> list:
        """The experiment's runs, newest first."""
        return list(self.client().search_runs([self.client().get_experiment_by_name(experiment).experiment_id]))

    def start(self, code: str, **environment: str) -> subprocess.Popen:
        """Starts a process that runs `code` in the folder, tracking on."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "TRACKING"))}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=self.root,
            env=kept | {"PYTHONPATH": str(SRC), "TRACKING": "on"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema and nothing in it: making one takes seconds, copying none."""
    from subspacelab.tracking.store import set_mlflow_defaults

    set_mlflow_defaults()
    from subspacelab.tracking.mlflow_tracker import connect

    folder = tmp_path_factory.mktemp("store")
    connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def bare_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A repository without a store, tracking on."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKING", "on")
    monkeypatch.delenv("RANK", raising=False)
    return Place(tmp_path)


@pytest.fixture
def place(bare_place: Place, empty_store: Path) -> Place:
    """A repository with an empty store, tracking on."""
    (bare_place.root / "mlruns").mkdir()
    shutil.copy(empty_store, bare_place.root / "mlruns" / "mlflow.db")
    return bare_place


@pytest.fixture
def wait_for() -> Callable[[subprocess.Popen, str], None]:
    """Reads a process's output until a word appears on a line of its own."""

    def wait(process: subprocess.Popen, word: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == word:
                return
        assert process.stderr is not None
        raise AssertionError(f"{word!r} never came: {process.stderr.read()}")

    return wait
