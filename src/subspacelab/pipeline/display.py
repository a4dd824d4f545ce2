"""Terminal tables: results of sweeps and searches, of `runs sync` and of `runs reap`."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from subspacelab.pipeline.metrics import Difference
from subspacelab.pipeline.sweep import Outcome
from subspacelab.plotting.terminal import print_table, show_number

if TYPE_CHECKING:  # they import MLflow and Optuna, which a sweep may do without
    import optuna

    from subspacelab.pipeline.search_space import Axis
    from subspacelab.pipeline.sync import Synced
    from subspacelab.pipeline.tuning import Tried
    from subspacelab.tracking.undelivered import Delivery


def differing(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """The names whose values differ between the mappings; all names if there is only one mapping."""
    names = sorted({name for found in metrics for name in found})
    return [name for name in names if len(metrics) < 2 or len({found.get(name) for found in metrics}) > 1]


def fitting(names: Sequence[str], width: int) -> list[str]:
    """As many of the names as fit side by side into `width` characters, two spaces between; at least the first."""
    ends = list(accumulate(len(name) + 2 for name in names))
    return [name for name, end in zip(names, ends, strict=True) if end <= width] or list(names[:1])


def print_sweep(outcomes: Sequence[Outcome], metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a row per trial: its name (which gives its values), its status, the metrics that differ between trials.

    `metrics` maps an experiment's name to its metrics.
    """
    found = [metrics.get(outcome.trial.name, {}) for outcome in outcomes]
    names = differing([m for m in found if m])
    longest = max(len(outcome.trial.name) for outcome in outcomes)
    shown = fitting(names, Console().width - longest - len("status") - 4)
    rows = [
        [outcome.trial.name, outcome.status, *(show_number(m.get(name), 4) for name in shown)]
        for outcome, m in zip(outcomes, found, strict=True)
    ]
    print_table("Sweep", ["experiment", "status", *shown], rows)
    if len(names) > len(shown):
        print(f"{len(names) - len(shown)} more metrics differ: dvc exp show, or subspacelab ui (experiment pipeline)")


def print_study(
    study: "optuna.Study", axes: "Sequence[Axis]", tried: "Tried", metric: str, pictures: Sequence[Path]
) -> None:
    """Prints a row per trial, the best trial, the command that restores it, and the paths of the pictures."""
    from subspacelab.pipeline.search_space import as_trial

    rows, best = [], None
    for trial in study.get_trials(deepcopy=False):
        values = as_trial(axes, trial.params)
        cells = [setting.value for setting in values.settings]
        rows.append([str(trial.number), *cells, show_number(trial.value, 6), trial.state.name.lower()])
        if trial.value is not None and trial.value == study.best_value and best is None:
            best = tried.apply(tried.name(trial.number, values), values)
    print_table(f"Search {study.study_name}", ["trial", *(axis.key for axis in axes), metric, "state"], rows)
    if best:
        print(f"best {metric} {study.best_value:.6g}: {best}")
    print(f"pictures: {', '.join(map(str, pictures))}")


def print_deliveries(deliveries: "Sequence[Delivery]") -> None:
    """Prints a row per run with delivered records, and the reason why some are not delivered."""
    rows = [[d.run_id, str(d.delivered), str(len(d.refused))] for d in deliveries]
    print_table("Records that had not arrived", ["run", "delivered", "refused"], rows)
    for d in deliveries:
        if d.refused:
            print(f"{d.file} keeps what was refused ({d.refused[0]}); delete it to give up on it")


def print_synced(synced: "Sequence[Synced]") -> None:
    """Prints a row per experiment: for how many of its changed stages it has runs of its own, of others, or none."""
    if not synced:
        print("DVC has no experiments that have ended: see dvc exp show")
        return
    rows = []
    for done in synced:
        links = done.links
        served = " ".join(dict.fromkeys(_name_of(run) for run in links.served.values()))
        counts = [str(len(part)) for part in (links.own, links.served, links.without)]
        rows.append([done.experiment.name, *counts, served or "-", str(done.tagged), (done.created or "-")[:8]])
    columns = ["experiment", "own", "others'", "none", "served by", "tagged", "created"]
    print_table("Changed stages of DVC's experiments and their runs", columns, rows)


def _name_of(run: Any) -> str:
    return str(run.data.tags.get("dvc.exp.name") or run.data.tags.get("pipeline.id", run.info.run_id))


def print_reaped(dead: Sequence[Any]) -> None:
    """Prints a row per run that was ended, of MLflow's type `Run`."""
    if not dead:
        print("no run of this host is dead")
        return
    rows = [[run.info.run_id, run.info.run_name or "-", run.data.tags.get("pid", "-")] for run in dead]
    print_table("Dead runs of this host, now KILLED", ["run", "name", "pid"], rows)


def print_differences(differences: Sequence[Difference]) -> None:
    """Prints a row per metric that is out of its tolerance."""
    rows = [
        [d.name, show_number(d.reference, 6), show_number(d.found, 6), show_number(d.allowed, 2)] for d in differences
    ]
    print_table("Metrics further off than they may be", ["metric", "committed", "found", "allowed"], rows)
