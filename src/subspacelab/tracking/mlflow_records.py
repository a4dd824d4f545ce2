"""Sends a record to an MLflow store: the same way during a run and for a later delivery."""

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from requests.exceptions import RequestException

from subspacelab.core.errors import first_of
from subspacelab.tracking.outbox import PACKAGE, Record, Refused, Unreachable
from subspacelab.tracking.registry import register
from subspacelab.tracking.store import without_secrets


def deliver(client: MlflowClient, uri: str, record: Record) -> None:
    """Makes the one call that `record` stands for; raises Unreachable or Refused.

    A record names its `run_id` and holds one of: `metrics`, `params` and `tags` (rows), `artifact` (a path, put
    `into` a folder), `table` (its `rows` as JSON), `inputs` (data sets), `model` (see `MlflowTracker.log_model`; the
    code of one that was kept lies in this package), `version` (the name under which the model `of_model`
    is registered, with `labels`), `status` (since `ended`).
    """
    run_id = record["run_id"]
    if "model" in record:
        with _file_errors():
            _deliver_model(client, uri, record)
    elif "artifact" in record:
        with _file_errors():
            log = client.log_artifacts if Path(record["artifact"]).is_dir() else client.log_artifact
            log(run_id, record["artifact"], record["into"])
    elif "table" in record:
        with _file_errors():
            client.log_text(run_id, record["rows"], record["table"])
    elif "inputs" in record:
        with _store_errors():
            client.log_inputs(run_id, [DatasetInput(Dataset(**row)) for row in record["inputs"]])
    elif "version" in record:
        with _once(), _global_uri(uri):
            register(client, uri, run_id, record["of_model"], record["version"], record["labels"])
    elif "status" in record:
        with _store_errors():
            client.set_terminated(run_id, record["status"], record["ended"])
    else:
        with _store_errors():
            client.log_batch(
                run_id,
                [Metric(m["key"], m["value"], m["timestamp"], m["step"]) for m in record.get("metrics", [])],
                [Param(p["key"], p["value"]) for p in record.get("params", [])],
                [RunTag(t["key"], t["value"]) for t in record.get("tags", [])],
            )


def first_line(error: Exception) -> str:
    """An error message as one line for the user, without secrets."""
    error = first_of(error)
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def _deliver_model(client: MlflowClient, uri: str, record: Record) -> None:
    run_id, step, folder = record["run_id"], record["step"], Path(record["files"])
    home = client.get_run(run_id).info.experiment_id
    model_id = client.create_logged_model(home, record["model"], run_id, params=record["params"]).model_id
    with _once(), _global_uri(uri), _only(folder, record["only"]) as files, warnings.catch_warnings():
        # A signature is given; an example would hold a whole input as JSON.
        warnings.simplefilter("ignore", UserWarning)
        Model.log(
            None,
            mlflow.pyfunc,
            run_id=run_id,
            model_id=model_id,
            step=step,
            python_model=str(PACKAGE / record["code"]),
            artifacts={"model": str(files)},
            pip_requirements=record["pip_requirements"],
            signature=_signature(record["tensors"]),
        )
        now = int(time.time() * 1000)
        rows = [Metric(key, value, now, step, model_id=model_id) for key, value in record["metrics"].items()]
        client.log_batch(run_id, metrics=rows)


@contextmanager
def _global_uri(uri: str) -> Iterator[None]:
    """Sets the global store, the only one that MLflow's model writer and registry know; restores the environment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def _only(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder of the model's files: its own, or a temporary one with only the named files."""
    if not names:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        chosen = Path(place) / folder.name
        chosen.mkdir()
        for name in names:
            shutil.copy2(folder / name, chosen / name)
        yield chosen


def _signature(tensors: Sequence[Sequence[int]] | None) -> ModelSignature | None:
    """The signature of a model of arrays; None lets MLflow read the type hints of `predict`."""
    if tensors is None:
        return None
    given, returned = (Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]) for shape in tensors)
    return ModelSignature(given, returned)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except MlflowException as e:
        status = e.get_http_status_code()
        refused = 400 <= status < 500 and status not in (408, 429)
        raise (Refused if refused else Unreachable)(first_line(e)) from e
    except RequestException as e:
        raise Unreachable(first_line(e)) from e


@contextmanager
def _file_errors() -> Iterator[None]:
    with _store_errors():
        try:
            yield
        except (MlflowException, RequestException, Refused):
            raise
        except Exception as e:  # each object store raises types of its own; the outbox reports it
            raise Refused(first_line(e)) from e


@contextmanager
def _once() -> Iterator[None]:
    try:
        yield
    except Exception as e:  # a model's own code runs here, and a registry may refuse in many ways
        raise Refused(first_line(e)) from e
