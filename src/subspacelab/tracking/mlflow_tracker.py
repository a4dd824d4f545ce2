"""The one module that imports MLflow: a client opened once per process, and the Tracker that speaks to it."""

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from subspacelab.tracking.outbox import Letter, Outbox, Refused, Unreachable
from subspacelab.tracking.protocol import ModelFiles, flatten, require_name
from subspacelab.tracking.store import database_file, is_server, main_root, shown, store_folder

if TYPE_CHECKING:
    import pandas as pd

_EVERY = 5.0  # seconds between two sendings of buffered metrics


def connect(uri: str) -> MlflowClient:
    """Opens the store, creating it at first use; the caller holds `store_lock`.

    A new SQLite file is made beside its place and renamed, so that no process that dies meanwhile leaves half a
    schema.
    """
    database = database_file(uri)
    if database and not database.exists():
        _create_database(database)
    return MlflowClient(uri)


def preload(uri: str) -> None:
    """Imports what opening the store needs (about a second), so that it does not happen while the lock is held."""
    if not is_server(uri):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def _create_database(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = database.with_name(f".{database.name}.{os.getpid()}.partial")
    try:
        SqlAlchemyStore(f"sqlite:///{partial}", (database.parent / "artifacts").as_uri()).engine.dispose()
        os.replace(partial, database)
    finally:
        partial.unlink(missing_ok=True)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Finds or creates an experiment; one deleted in the UI comes back. The caller holds `store_lock`."""
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if is_server(uri) else (store_folder(uri) / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another host was faster
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turns what MLflow raises while a run is opened into a ValueError of one line, with the remedy."""
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as e:
        remedy = "mend it, unset MLFLOW_TRACKING_URI, or run without tracking (TRACKING=off or --no-track)"
        raise ValueError(f"{shown(uri)} cannot be used ({_first_line(e)}); {remedy}") from e


class MlflowTracker:
    """Records one run, and headline metrics on its parent; a store that goes away does not stop the work."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str, parent_id: str | None = None) -> None:
        self._client, self._uri, self._parent_id = client, uri, parent_id
        self.run_id: str | None = run_id
        self._run_id = run_id
        self._buffer: list[tuple[str, Metric]] = []
        self._sent = time.monotonic()
        self._tables: list[dict[str, str]] = []
        self._outbox = Outbox(shown(uri), main_root() / ".cache" / "untracked" / f"{run_id}.jsonl")

    def log_params(self, params: Mapping[str, object]) -> None:
        self._send_params(self._run_id, dict(flatten(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self._buffer_metrics(self._run_id, metrics, step)
        if len(self._buffer) >= 1000 or time.monotonic() - self._sent >= _EVERY:
            self.flush()

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        self._buffer_metrics(self._run_id, metrics, 0)
        if self._parent_id:
            self._buffer_metrics(self._parent_id, metrics, 0)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        if not path.exists():
            raise ValueError(f"{path}: no such file to record as an artifact; write it before it is logged")
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        record = {"artifact": str(path), "folder": folder}
        self._send_files(record, lambda: log(self._run_id, str(path), folder))

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        file = f"{require_name(name, 'table')}.json"
        text = table.to_json(orient="split", index=False, date_format="iso")
        self._send_files({"table": file, "rows": text}, lambda: self._client.log_text(self._run_id, text, file))
        # By this tag the UI knows which of the JSON artifacts are tables.
        self._tables.append({"path": file, "type": "table"})
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def log_model(self, model: ModelFiles) -> None:
        metrics = {require_name(key, "metric"): float(value) for key, value in model.metrics.items()}
        record = {"model": model.name, "folder": str(model.folder), "metrics": metrics}
        self._send_files(record, lambda: self._deliver_model(model, metrics))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._send_tags(self._run_id, tags)

    def log_parent(self, params: Mapping[str, object], present: Mapping[str, str]) -> None:
        """Records on the parent those params that it does not have yet (a stage before may have set them)."""
        if self._parent_id:
            new = {key: value for key, value in flatten(params) if key not in present}
            self._send_params(self._parent_id, new)

    def flush(self) -> None:
        """Sends the buffered metrics, at most 1000 in a call."""
        waiting, self._buffer, self._sent = self._buffer, [], time.monotonic()
        for run_id in dict.fromkeys(run_id for run_id, _ in waiting):
            metrics = [metric for owner, metric in waiting if owner == run_id]
            for i in range(0, len(metrics), 1000):
                self._send_batch(run_id, metrics=metrics[i : i + 1000])

    def end(self, status: str, parent_status: str = "") -> None:
        """Sends what is left and ends the run, and its parent with a status of its own."""
        self.flush()
        self._terminate(self._run_id, status)
        if self._parent_id:
            self._terminate(self._parent_id, parent_status or status)
        self._outbox.close()

    def _buffer_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        for name, given in metrics.items():
            value = float(given)
            if not isfinite(value):
                # The store clips an infinity to 1.8e308, which ruins the chart's axis; a NaN is a gap in it.
                self._send_tags(run_id, {f"nonfinite.{name}": f"{value} at step {step}"})
                value = float("nan")
            self._buffer.append((run_id, Metric(require_name(name, "metric"), value, now, int(step))))

    def _send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        rows = [Param(key, value[:6000]) for key, value in params.items()]
        for i in range(0, len(rows), 100):
            self._send_batch(run_id, params=rows[i : i + 100])

    def _send_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        rows = [RunTag(require_name(key, "tag"), str(value)[:8000]) for key, value in tags.items()]
        for i in range(0, len(rows), 100):
            self._send_batch(run_id, tags=rows[i : i + 100])

    def _send_batch(self, run_id: str, **rows: list[Any]) -> None:
        record = {"run_id": run_id} | {kind: [dict(row) for row in found] for kind, found in rows.items()}

        def deliver() -> None:
            with _store_errors():
                self._client.log_batch(run_id, **rows)

        self._outbox.send(Letter(record, deliver))

    def _send_files(self, record: Mapping[str, object], log: Any) -> None:
        def deliver() -> None:
            with _file_errors():
                log()

        self._outbox.send(Letter({"run_id": self._run_id, **record}, deliver))

    def _terminate(self, run_id: str, status: str) -> None:
        def deliver() -> None:
            with _store_errors():
                self._client.set_terminated(run_id, status)

        self._outbox.send(Letter({"run_id": run_id, "status": status}, deliver))

    def _deliver_model(self, model: ModelFiles, metrics: Mapping[str, float]) -> None:
        params = dict(flatten(model.params))
        home = self._client.get_run(self._run_id).info.experiment_id
        model_id = self._client.create_logged_model(home, model.name, self._run_id, params=params).model_id
        with _once(), _global_uri(self._uri), _only(model) as folder, warnings.catch_warnings():
            # A signature is given; an example would hold a whole input as JSON.
            warnings.simplefilter("ignore", UserWarning)
            Model.log(
                None,
                mlflow.pyfunc,
                run_id=self._run_id,
                model_id=model_id,
                step=model.step,
                python_model=str(model.code),
                artifacts={"model": str(folder)},
                pip_requirements=list(model.pip_requirements),
                signature=_signature(model),
            )
            now = int(time.time() * 1000)
            rows = [Metric(key, value, now, model.step, model_id=model_id) for key, value in metrics.items()]
            self._client.log_batch(self._run_id, metrics=rows)


@contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """MLflow's model writer knows only the global store; the environment is as before afterwards."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def _only(model: ModelFiles) -> Iterator[Path]:
    """The folder of the model's files: its own, or a temporary one that holds just those named."""
    if not model.files:
        yield model.folder
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / model.folder.name
        folder.mkdir()
        for file in model.files:
            shutil.copy2(model.folder / file, folder / file)
        yield folder


def _signature(model: ModelFiles) -> ModelSignature | None:
    """Of a model of arrays; None lets MLflow read the type hints of `predict`."""
    if model.tensors is None:
        return None
    given, returned = (Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]) for shape in model.tensors)
    return ModelSignature(given, returned)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except MlflowException as e:
        status = e.get_http_status_code()
        refused = 400 <= status < 500 and status not in (408, 429)
        raise (Refused if refused else Unreachable)(_first_line(e)) from e
    except RequestException as e:
        raise Unreachable(_first_line(e)) from e


@contextmanager
def _file_errors() -> Iterator[None]:
    with _store_errors():
        try:
            yield
        except (MlflowException, RequestException, Refused):
            raise
        except Exception as e:  # each object store raises types of its own; the outbox reports it
            raise Refused(_first_line(e)) from e


@contextmanager
def _once() -> Iterator[None]:
    try:
        yield
    except Exception as e:  # the model's own code runs here; a second try would make a second model
        raise Refused(_first_line(e)) from e


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
