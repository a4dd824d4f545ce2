"""Links between DVC's experiments and the tracked runs that made their results.

A stage that DVC takes from its run cache has no process, so no run has the experiment's name; the run that made the
same bytes for another experiment has their MD5 in its tags `dvc.out.<path>`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from subspacelab.pipeline.experiments import Experiment, Outs, read_outs
from subspacelab.tracking.mlflow_tracker import MlflowTracker, RunPlace


@dataclass(frozen=True)
class Links:
    """The runs of one experiment, of MLflow's type `Run`; stages unchanged since the baseline are left out."""

    parents: list[Any]
    """Its pipeline runs."""
    own: dict[str, Any]
    """Stage -> the run with the experiment's name that made its outs."""
    served: dict[str, Any]
    """Stage -> the run with another name that made the same outs."""
    without: list[str]
    """Stages without a run for their outs: tracking was off, or the stage passes its input on."""


class RunIndex:
    """Tracked runs by id, by experiment and by their outs."""

    def __init__(self, runs: Iterable[Any]) -> None:
        """`runs` are ordered newest first; of several matching runs, the newest is found."""
        self._by_id: dict[str, Any] = {}
        self._parents: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self._makers: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
        for run in runs:
            tags = run.data.tags
            self._by_id[run.info.run_id] = run
            if tags.get("pipeline.role") == "parent":
                self._parents[_experiment_of(run)].append(run)
            for key, md5 in tags.items():
                if key.startswith("dvc.out.") and run.info.status == "FINISHED":
                    self._makers[tags.get("dvc.stage", ""), key.removeprefix("dvc.out."), md5].append(run)

    def links(self, experiment: Experiment, outs: Outs, baseline: Outs) -> Links:
        """The runs of the stages whose `outs` differ from the `baseline`."""
        of_it = (experiment.name, experiment.baseline)
        found = Links(self._parents[of_it], {}, {}, [])
        for stage, made in outs.items():
            if made == baseline.get(stage):
                continue
            run = self._maker(stage, made, of_it)
            if run is None:
                found.without.append(stage)
            else:
                (found.own if _experiment_of(run) == of_it else found.served)[stage] = run
        return found

    def headline(self, experiment: Experiment, outs: Outs) -> dict[str, float]:
        """The headline metrics of all stages with a run: the metrics that it shares with its parent."""
        metrics: dict[str, float] = {}
        for stage, made in outs.items():
            run = self._maker(stage, made, (experiment.name, experiment.baseline))
            parent = self._by_id.get(run.data.tags.get("mlflow.parentRunId", "")) if run else None
            if run and parent:
                metrics |= {name: run.data.metrics[name] for name in run.data.metrics.keys() & parent.data.metrics}
        return dict(sorted(metrics.items()))

    def _maker(self, stage: str, made: Mapping[str, str], preferred: tuple[str, str]) -> Any | None:
        """The run that made all of these outs, preferably one of the `preferred` experiment."""
        wanted = {f"dvc.out.{path}": md5 for path, md5 in made.items()}
        path, md5 = next(iter(made.items()), ("", ""))
        makers = [run for run in self._makers.get((stage, path, md5), []) if wanted.items() <= run.data.tags.items()]
        own = [run for run in makers if _experiment_of(run) == preferred]
        return next(iter(own or makers), None)


def _experiment_of(run: Any) -> tuple[str, str]:
    return run.data.tags.get("dvc.exp.name", ""), run.data.tags.get("dvc.baseline_rev", "")


ALSO = "dvc.exp.also"
"""Tag of a run: names of the other experiments that use its outs, separated by spaces."""

T = TypeVar("T")


@dataclass(frozen=True)
class Synced:
    """What was done for one experiment."""

    experiment: Experiment
    """The experiment."""
    links: Links
    """Its runs."""
    tagged: int
    """Number of runs that got a new tag."""
    created: str | None
    """Id of the run that was created for it; None if none was needed."""


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
    """Tags runs with their experiment's commit, `dvc.exp.rev`, and runs that serve another experiment with its name.

    With `create_missing`, an experiment without a pipeline run gets one in the MLflow experiment `home` (an id), tagged
    `dvc.from_run_cache`, with its parameters and the headline metrics of the runs that serve it, or with all of DVC's
    metrics if none does. A second call changes nothing.
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
    """Experiment -> its headline metrics, from all runs that made its results."""
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
    about = f"DVC took these results from its run cache, so nothing ran. `{tags['dvc.apply']}` brings its files."
    tracker = MlflowTracker(client, uri, RunPlace(run_id, description=about))
    tracker.log_params(_storable(experiment.params))
    tracker.log_headline(headline or _storable(experiment.metrics))
    tracker.end("FINISHED")
    return run_id


def _storable(values: Mapping[str, T]) -> dict[str, T]:
    """The metrics under names that the store accepts."""
    return {re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]: value for name, value in values.items()}
