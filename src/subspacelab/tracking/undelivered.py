"""Delivery of records that a store did not accept during their run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from subspacelab.core.ownership import sole_writer
from subspacelab.tracking.mlflow_records import deliver
from subspacelab.tracking.mlflow_tracker import UNDELIVERED
from subspacelab.tracking.outbox import (
    FILES,
    Record,
    Refused,
    Unreachable,
    copies_of,
    read_records,
    spill_file,
    write_records,
)
from subspacelab.tracking.protocol import require_name
from subspacelab.tracking.store import main_root, shown

_WORST_FIRST = ("FAILED", "KILLED", "FINISHED")


@dataclass(frozen=True)
class Delivery:
    """The result of delivering one run's records."""

    run_id: str
    """The run."""
    file: Path
    """File of the records; the remaining ones are still there."""
    delivered: int
    """Number of records that the store accepted."""
    refused: list[str]
    """Reasons for the rejected records, one each."""


Name = Annotated[str, AfterValidator(lambda name: require_name(name, "record's"))]
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class _OfRun(BaseModel):
    """A record of a file is data: it names no file outside of its run's own folder, and no code but this package's."""

    model_config = ConfigDict(extra="forbid")
    run_id: RunId


class _Metric(BaseModel):
    key: Name
    value: float
    timestamp: int
    step: int


class _Pair(BaseModel):
    key: Name
    value: str


class _Rows(_OfRun):
    metrics: list[_Metric] = []
    params: list[_Pair] = []
    tags: list[_Pair] = []


class _Artifact(_OfRun):
    artifact: Path
    into: Name | None


class _Table(_OfRun):
    table: Name
    rows: str


class _Model(_OfRun):
    model: Name
    files: Path
    only: list[Annotated[str, Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$")]]
    code: Annotated[str, Field(pattern=r"^\w+(/\w+)?/mlflow_model\.py$")]
    pip_requirements: list[Annotated[str, Field(pattern=r"^[\w.-]+==[\w.+!-]+$")]]
    params: dict[Name, str]
    metrics: dict[Name, float]
    step: int
    tensors: tuple[tuple[int, ...], tuple[int, ...]] | None


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    digest: str
    source_type: Literal["local", "http"]
    source: str
    profile: str


class _Inputs(_OfRun):
    inputs: list[_Input]


class _Version(_OfRun):
    version: Name
    of_model: Name
    labels: dict[Name, str]


class _Status(_OfRun):
    status: Literal["FINISHED", "FAILED", "KILLED"]
    ended: int


_KINDS: dict[str, type[_OfRun]] = {
    "artifact": _Artifact,
    "table": _Table,
    "model": _Model,
    "inputs": _Inputs,
    "version": _Version,
    "status": _Status,
}


def deliver_undelivered(client: Any, uri: str) -> list[Delivery]:
    """Delivers every kept record in order; files of runs without remaining records are removed.

    `client` is an `MlflowClient` for `uri`. ValueError, in one line, if the store fails meanwhile; records that it has
    accepted are not sent again. If one is not a valid record, or names files or code of others, none is sent.
    """
    folder = main_root() / UNDELIVERED
    if not folder.is_dir():
        return []
    with sole_writer(folder):
        read = [(file, _read(file)) for file in sorted(folder.glob("*.jsonl"))]
        return [_deliver_file(client, uri, file, records) for file, records in read]


def _read(file: Path) -> list[Record]:
    if file.is_symlink() or not file.is_file() or spill_file(file.parent, file.stem) != file:
        raise ValueError(f"{file}: no file of records; move it away")
    records = read_records(file)
    for number, record in enumerate(records, start=1):
        kind = next((kind for key, kind in _KINDS.items() if key in record), _Rows)
        try:
            kind.model_validate(record)
            _require_own_files(record, copies_of(file))
        except ValidationError as e:
            problem = e.errors()[0]
            said = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            raise ValueError(f"{file}, line {number}: {said}; delete the line or the file") from e
        except ValueError as e:
            raise ValueError(f"{file}, line {number}: {e}; delete the line or the file") from e
    return records


def _require_own_files(record: Record, own: Path) -> None:
    for place in (Path(record[key]) for key in FILES if key in record):
        if own.resolve() not in place.resolve().parents or any(p.is_symlink() for p in (place, *place.rglob("*"))):
            raise ValueError(f"{place} is, or leads, outside of {own}")


def _deliver_file(client: Any, uri: str, file: Path, records: list[Record]) -> Delivery:
    run_id = file.stem
    # A parent's status is worked out afterwards: it may have gone on with other stages since.
    parents = {r["run_id"] for r in records if "status" in r and r["run_id"] != run_id}
    waiting = [r for r in records if "status" not in r or r["run_id"] == run_id]
    delivered, left, refused = 0, list[Record](), list[str]()
    while waiting:
        try:
            deliver(client, uri, waiting[0])
            delivered += 1
        except Refused as e:
            left.append(waiting[0])
            refused.append(str(e))
        except Unreachable as e:
            kept = [r for r in records if "status" in r and r["run_id"] in parents]
            write_records(file, [*left, *waiting, *kept])
            raise ValueError(f"{shown(uri)} failed ({e}); {delivered} record(s) of run {run_id} arrived") from e
        waiting.pop(0)
    for parent in parents:
        _settle(client, parent)
    write_records(file, left)
    return Delivery(run_id, file, delivered, refused)


def _settle(client: Any, parent_id: str) -> None:
    """Ends a parent with the worst status of its stages' last runs, unless one of its stages is running."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(experiments, f"attributes.run_id = '{parent_id}'") or (None,)
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent_id}'")
    if parent is None or parent.info.status == "RUNNING" or not children:
        return
    # Newest first, so the last run of each stage stays.
    last = {run.data.tags.get("dvc.stage"): run.info.status for run in reversed(children)}
    worst = next((status for status in _WORST_FIRST if status in last.values()), "FINISHED")
    if worst != parent.info.status:
        client.set_terminated(parent_id, worst)
