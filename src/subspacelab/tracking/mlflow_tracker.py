"""An MLflow client, opened once per process, and the Tracker that uses it."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from subspacelab.core.files import write_beside
from subspacelab.tracking.datasets import DataSet
from subspacelab.tracking.mlflow_records import deliver, first_line
from subspacelab.tracking.notes import FOLDER, NOTE, SHOWN, Summary, note, small_picture
from subspacelab.tracking.outbox import Outbox, spill_file
from subspacelab.tracking.protocol import ModelFiles, flatten, require_name
from subspacelab.tracking.registry import METRIC, VALUE, registered_name
from subspacelab.tracking.store import database_file, is_server, main_root, shown, store_folder

if TYPE_CHECKING:
    import pandas as pd

UNDELIVERED = Path(".cache/untracked")
"""Folder in the main repository for records that a store did not accept."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag by which MLflow's UI opens an experiment in its view for model training."""

_EVERY = 5.0  # seconds between two sendings of buffered metrics


def connect(uri: str) -> MlflowClient:
    """Opens the store, and creates it at first use; the caller holds `store_lock`.

    A new SQLite file is made beside its place and renamed, so that a process that dies meanwhile leaves no incomplete
    schema.
    """
    database = database_file(uri)
    if database and not database.exists():
        _create_database(database)
    if database:
        database.open("r+b").close()  # one that cannot be used fails at once; MLflow would try for minutes
    return MlflowClient(uri)


def preload(uri: str) -> None:
    """Imports what opening the store needs (about a second), so that this does not happen while the lock is held."""
    if not is_server(uri):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def _create_database(database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with write_beside(database) as partial:
        SqlAlchemyStore(f"sqlite:///{partial}", (database.parent / "artifacts").as_uri()).engine.dispose()


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Finds or creates an experiment, of the kind of model training; one deleted in the UI comes back.

    A kind that a person has chosen stays. The caller holds `store_lock`.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if is_server(uri) else (store_folder(uri) / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=KIND))
        except MlflowException as e:
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another host was faster
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in KIND.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turns exceptions of MLflow while a run is opened into a ValueError of one line, with the remedy."""
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as e:
        remedy = "mend it, unset MLFLOW_TRACKING_URI, or run without tracking (TRACKING=off or --no-track)"
        raise ValueError(f"{shown(uri)} cannot be used ({first_line(e)}); {remedy}") from e


@dataclass(frozen=True)
class RunPlace:
    """The run to record to, and facts about it."""

    run_id: str
    """Its id in the store."""
    parent_id: str | None = None
    """Id of the pipeline's run."""
    description: str = ""
    """One sentence on what the run does."""
    parent_description: str = ""
    """One sentence on the pipeline's run."""
    parent_metrics: Mapping[str, float] = field(default_factory=dict)
    """Headline metrics that earlier stages have recorded on it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Tags that a model's version shares with the run: the study, and the command that restores it."""


class MlflowTracker:
    """Records one run, and headline metrics on its parent; if the store fails, the work continues."""

    def __init__(self, client: MlflowClient, uri: str, run: str | RunPlace) -> None:
        self._place = run if isinstance(run, RunPlace) else RunPlace(run)
        self.run_id: str | None = self._place.run_id
        self._run_id, self._parent_id = self._place.run_id, self._place.parent_id
        self._buffer: list[tuple[str, Metric]] = []
        self._sent = time.monotonic()
        self._tables: list[dict[str, str]] = []
        self._headline: dict[str, float] = {}
        self._pictures: list[str] = []
        self._summaries: Sequence[Summary] = ()
        spill = spill_file(main_root() / UNDELIVERED, self._run_id)
        self._outbox = Outbox(shown(uri), spill, lambda record: deliver(client, uri, record))

    def log_params(self, params: Mapping[str, object]) -> None:
        self._send_params(self._run_id, dict(flatten(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self._buffer_metrics(self._run_id, metrics, step)
        if len(self._buffer) >= 1000 or time.monotonic() - self._sent >= _EVERY:
            self.flush()

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        self._headline |= metrics
        self._buffer_metrics(self._run_id, metrics, 0)
        if self._parent_id:
            self._buffer_metrics(self._parent_id, metrics, 0)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        if not path.exists():
            raise ValueError(f"{path}: no such file to record as an artifact; write it before it is logged")
        self._outbox.send({"run_id": self._run_id, "artifact": str(path), "into": folder})
        if path.suffix == ".png" and len(self._pictures) < SHOWN and self._show(self._run_id, path):
            self._pictures.append(path.name)

    def log_page(self, path: Path, summaries: Sequence[Summary] = ()) -> None:
        for run_id in filter(None, (self._run_id, self._parent_id)):
            self._outbox.send({"run_id": run_id, "artifact": str(path), "into": None})
            self._summaries = [
                s if s.picture and self._show(run_id, s.picture) else replace(s, picture=None) for s in summaries
            ]

    def log_inputs(self, data_sets: Sequence[DataSet]) -> None:
        rows = [
            {"name": d.name, "digest": d.digest, "source_type": d.kind, "source": d.source_json()}
            | {"profile": d.profile_json()}
            for d in data_sets
        ]
        if rows:
            self._outbox.send({"run_id": self._run_id, "inputs": rows})

    def log_table(self, table: "pd.DataFrame", name: str) -> None:
        file = f"{require_name(name, 'table')}.json"
        text = table.to_json(orient="split", index=False, date_format="iso")
        self._outbox.send({"run_id": self._run_id, "table": file, "rows": text})
        # By this tag the UI knows which of the JSON artifacts are tables.
        self._tables.append({"path": file, "type": "table"})
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def log_model(self, model: ModelFiles) -> None:
        metrics = {require_name(key, "metric"): float(value) for key, value in model.metrics.items()}
        self._outbox.send(
            {
                "run_id": self._run_id,
                "model": model.name,
                "files": str(model.folder),
                "only": list(model.files),
                "code": str(model.code),
                "pip_requirements": list(model.pip_requirements),
                "params": dict(flatten(model.params)),
                "metrics": metrics,
                "step": model.step,
                "tensors": model.tensors,
            }
        )
        if model.registered:
            value = metrics.get(model.headline, float("nan"))
            headline = {METRIC: model.headline, VALUE: str(value)} if isfinite(value) else {}
            labels = dict(self._place.labels) | headline
            name = registered_name(model.registered, labels.get("study"))
            self._outbox.send({"run_id": self._run_id, "version": name, "of_model": model.name, "labels": labels})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._send_tags(self._run_id, tags)

    def log_parent(self, params: Mapping[str, object], present: Mapping[str, str]) -> None:
        """Records on the parent the params that it does not have yet (an earlier stage may have set them)."""
        if self._parent_id:
            new = {key: value for key, value in flatten(params) if key not in present}
            self._send_params(self._parent_id, new)

    def flush(self) -> None:
        """Sends the buffered metrics, at most 1000 per call."""
        waiting, self._buffer, self._sent = self._buffer, [], time.monotonic()
        for run_id in dict.fromkeys(run_id for run_id, _ in waiting):
            metrics = [metric for owner, metric in waiting if owner == run_id]
            for i in range(0, len(metrics), 1000):
                self._send_batch(run_id, metrics=metrics[i : i + 1000])

    def end(self, status: str, parent_status: str = "") -> None:
        """Sends the remaining records and ends the run, and its parent with its own status."""
        self.flush()
        self._describe()
        self._terminate(self._run_id, status)
        if self._parent_id:
            self._terminate(self._parent_id, parent_status or status)
        self._outbox.close()

    def send_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records a point per metric immediately; the only method that other threads may call."""
        now = int(time.time() * 1000)
        points = [Metric(require_name(name, "metric"), float(value), now, step) for name, value in metrics.items()]
        self._send_batch(self._run_id, metrics=points)

    def _describe(self) -> None:
        """Sets the description of the run, and of its parent if there is something new."""
        place = self._place
        text = note(self._run_id, place.description, self._headline, self._pictures, self._summaries)
        if text:
            self.set_tags({NOTE: text})
        if self._parent_id and (self._headline or self._summaries or not place.parent_metrics):
            headline = {**place.parent_metrics, **self._headline}
            text = note(self._parent_id, place.parent_description, headline, (), self._summaries)
            self._send_tags(self._parent_id, {NOTE: text})

    def _show(self, run_id: str, picture: Path) -> bool:
        """Records the picture in the size of a description; False for what is no picture."""
        with tempfile.TemporaryDirectory() as place:
            small = small_picture(picture, Path(place))
            if small:
                self._outbox.send({"run_id": run_id, "artifact": str(small), "into": FOLDER})
            return small is not None

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
        self._outbox.send({"run_id": run_id} | {kind: [dict(row) for row in found] for kind, found in rows.items()})

    def _terminate(self, run_id: str, status: str) -> None:
        self._outbox.send({"run_id": run_id, "status": status, "ended": int(time.time() * 1000)})
