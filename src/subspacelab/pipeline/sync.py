"""DVC's experiments and MLflow's runs, each naming the other, also where DVC's run cache left no run to name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from subspacelab.pipeline.experiments import Experiment, read_outs
from subspacelab.pipeline.links import Links, RunIndex
from subspacelab.tracking.mlflow_tracker import MlflowTracker

ALSO = "dvc.exp.also"
"""Tag of a run: the other experiments that its outs serve, by name, with a space between."""

T = TypeVar("T")


@dataclass(frozen=True)
class Synced:
    """What was done for one experiment."""

    experiment: Experiment
    """It."""
    links: Links
    """Its runs."""
    tagged: int
    """How many runs got a tag that they did not have."""
    created: str | None
    """Id of the run that was made for it."""


def all_runs(client: Any) -> list[Any]:
    """Every run of every experiment in the store, newest first; `client` is an `MlflowClient`."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            experiments, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs


def sync_experiments(
    client: Any, uri: str, home: str, experiments: Sequence[Experiment], *, create_missing: bool = False
) -> list[Synced]:
    """Tags runs with the commit `dvc.exp.rev` of their experiment, and those that serve another with its name.

    With `create_missing` an experiment without a pipeline run of its own gets one in the MLflow experiment `home` (an
    id), tagged `dvc.from_run_cache`, with its parameters and the headline metrics of the runs that serve it; where none
    does, with all of DVC's metrics. A second call changes nothing.
    """
    index, outs_of = RunIndex(all_runs(client)), cache(read_outs)
    synced = []
    for experiment in experiments:
        outs = outs_of(experiment.rev)
        links = index.links(experiment, outs, outs_of(experiment.baseline))
        tagged = sum(_tag(client, run, "dvc.exp.rev", experiment.rev) for run in [*links.parents, *links.own.values()])
        tagged += sum(_tag_also(client, run, experiment.name) for run in links.served.values())
        created = None
        if create_missing and not links.parents:
            created = _create(client, uri, home, experiment, index.headline(experiment, outs))
        synced.append(Synced(experiment, links, tagged, created))
    return synced


def headlines(client: Any, experiments: Sequence[Experiment]) -> dict[str, dict[str, float]]:
    """Experiment to its headline metrics, whichever runs they are from."""
    index = RunIndex(all_runs(client))
    return {e.name: index.headline(e, read_outs(e.rev)) for e in experiments}


def _tag(client: Any, run: Any, key: str, value: str) -> bool:
    if run.data.tags.get(key) == value:
        return False
    client.set_tag(run.info.run_id, key, value)
    run.data.tags[key] = value
    return True


def _tag_also(client: Any, run: Any, name: str) -> bool:
    names = run.data.tags.get(ALSO, "").split()
    return name not in names and _tag(client, run, ALSO, " ".join([*names, name]))


def _create(client: Any, uri: str, home: str, experiment: Experiment, headline: dict[str, float]) -> str:
    tags = {
        "dvc.exp.name": experiment.name,
        "dvc.exp.rev": experiment.rev,
        "dvc.baseline_rev": experiment.baseline,
        "dvc.apply": f"dvc exp apply {experiment.name}",
        "dvc.from_run_cache": "true",
        "pipeline.id": f"exp:{experiment.name}@{experiment.baseline[:8]}",
        "pipeline.role": "parent",
    }
    run_id = str(client.create_run(home, tags=tags, run_name=experiment.name).info.run_id)
    tracker = MlflowTracker(client, uri, run_id)
    tracker.log_params(_storable(experiment.params))
    tracker.log_metrics(headline or _storable(experiment.metrics))
    tracker.end("FINISHED")
    return run_id


def _storable(values: Mapping[str, T]) -> dict[str, T]:
    """The same with names that the store takes."""
    return {re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]: value for name, value in values.items()}
