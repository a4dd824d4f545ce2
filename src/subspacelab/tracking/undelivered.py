"""Records that a store did not take while their run was at work, delivered when it is back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspacelab.tracking.mlflow_records import deliver
from subspacelab.tracking.mlflow_tracker import UNDELIVERED
from subspacelab.tracking.outbox import Record, Refused, Unreachable, read_records, write_records
from subspacelab.tracking.store import main_root, shown

_WORST_FIRST = ("FAILED", "KILLED", "FINISHED")


@dataclass(frozen=True)
class Delivery:
    """What became of one run's records."""

    run_id: str
    """The run."""
    file: Path
    """Where the records lay, and those left still lie."""
    delivered: int
    """How many the store took."""
    refused: list[str]
    """Why it refused the others, one reason a record."""


def deliver_undelivered(client: Any, uri: str) -> list[Delivery]:
    """Delivers every kept record in its order; files of runs without any left are removed.

    `client` is an `MlflowClient` for `uri`. Raises ValueError in one line when the store goes away meanwhile; what
    it has taken until then is not sent again.
    """
    return [_deliver_file(client, uri, file) for file in sorted((main_root() / UNDELIVERED).glob("*.jsonl"))]


def _deliver_file(client: Any, uri: str, file: Path) -> Delivery:
    run_id, records = file.stem, read_records(file)
    for number, record in enumerate(records, start=1):
        if not isinstance(record.get("run_id"), str):
            raise ValueError(f"{file}, line {number}: a record of no run; delete the line or the file")
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
    """Ends a parent with the worst status of its stages' last runs, unless a stage is at work on it."""
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
