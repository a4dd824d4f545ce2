"""Which tracked run made what an experiment holds: by the experiment's name, or by the md5 of what came out.

A stage that DVC serves from its run cache has no process, so no run of the experiment's name; the run that made the
same bytes for another experiment carries their md5 as tags `dvc.out.<path>`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from subspacelab.pipeline.experiments import Experiment, Outs


@dataclass(frozen=True)
class Links:
    """The runs of one experiment, of MLflow's type `Run`; stages that are as in the baseline have none."""

    parents: list[Any]
    """Of its pipeline runs."""
    own: dict[str, Any]
    """Stage to the run of the experiment's name that made its outs."""
    served: dict[str, Any]
    """Stage to the run of another name that made the same outs."""
    without: list[str]
    """Stages whose outs no run names: tracking was off, or the stage hands its input on."""


class RunIndex:
    """Tracked runs by id, by experiment and by what they made."""

    def __init__(self, runs: Iterable[Any]) -> None:
        """`runs` come newest first; the newest that fits is the one that is found."""
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
        """The runs behind the stages whose `outs` are not those of the `baseline`."""
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
        """The headline metrics of all stages that a run is found of: those that it shares with its parent."""
        metrics: dict[str, float] = {}
        for stage, made in outs.items():
            run = self._maker(stage, made, (experiment.name, experiment.baseline))
            parent = self._by_id.get(run.data.tags.get("mlflow.parentRunId", "")) if run else None
            if run and parent:
                metrics |= {name: run.data.metrics[name] for name in run.data.metrics.keys() & parent.data.metrics}
        return dict(sorted(metrics.items()))

    def _maker(self, stage: str, made: Mapping[str, str], preferred: tuple[str, str]) -> Any | None:
        """The run that made every one of these outs, one of the `preferred` experiment if there is one."""
        wanted = {f"dvc.out.{path}": md5 for path, md5 in made.items()}
        path, md5 = next(iter(made.items()), ("", ""))
        makers = [run for run in self._makers.get((stage, path, md5), []) if wanted.items() <= run.data.tags.items()]
        own = [run for run in makers if _experiment_of(run) == preferred]
        return next(iter(own or makers), None)


def _experiment_of(run: Any) -> tuple[str, str]:
    return run.data.tags.get("dvc.exp.name", ""), run.data.tags.get("dvc.baseline_rev", "")
