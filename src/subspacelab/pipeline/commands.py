"""`subspacelab sweep`, `subspacelab runs ...`, `subspacelab metrics ...`: DVC's experiments and their tracked runs."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from subspacelab.core.flags import Seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from subspacelab.pipeline.search_space import Axis
    from subspacelab.pipeline.tuning import Experiments, Value

runs = typer.Typer(no_args_is_help=True, help="Tracked runs: link them to DVC's experiments, end dead ones.")
metrics = typer.Typer(no_args_is_help=True, help="Compare an experiment's metrics with committed ones.")

REFERENCE = Path("tests/reference/smoke_metrics.json")
TOLERANCES = Path("tests/reference/tolerances.yaml")


def sweep(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages to run; default: all.")] = None,
    set_param: Annotated[
        list[str] | None,
        typer.Option("--set-param", "-S", help="key=value,value,... Repeatable; [a,b] is one value."),
    ] = None,
    targets: Annotated[list[str] | None, typer.Option(help="The same as STAGES. Repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run existing experiments again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run nothing.")] = False,
) -> None:
    """Runs every combination of values as an experiment.

    One by one; the same as `dvc exp run --queue` with `dvc queue start`, without a queue:

    \b
    subspacelab sweep -S rank=64,128 -S train_lowrank.lr=5e-4,1e-3

    An experiment is named after its values, and skipped if it exists. One that fails does not stop the others. Each
    runs in a temporary copy; params.yaml is never edited.
    """
    from subspacelab.pipeline.display import print_sweep
    from subspacelab.pipeline.dvc_process import require_dvc, require_usable_path
    from subspacelab.pipeline.experiments import read_experiments
    from subspacelab.pipeline.params import PARAMS, read_yaml
    from subspacelab.pipeline.sweep import combine, require_known, require_success, run_sweep, show_plan

    require_dvc()
    require_usable_path(Path.cwd())
    trials, chosen = combine(set_param or []), [*(stages or []), *(targets or [])]
    require_known(trials, read_yaml(PARAMS))
    there = {experiment.name for experiment in read_experiments()}
    if dry_run:
        print("\n".join(show_plan(trials, chosen, there)))
        return
    outcomes = run_sweep(trials, chosen, there, force=force)
    print_sweep(outcomes, _figures({trial.name for trial in trials}))
    require_success(outcomes)


def tune(
    stage: Annotated[
        list[str],
        typer.Argument(help="The stage to run; with --no-dvc, the command to run, after --.", metavar="STAGE"),
    ],
    set_param: Annotated[
        list[str],
        typer.Option(
            "--set-param",
            "-S",
            help="key=KIND:values; KIND is uniform, loguniform, int or logint (low,high), or choice. Repeatable.",
        ),
    ],
    metric: Annotated[str, typer.Option(help="A number in reports/ that STAGE writes, such as cosine_network.")],
    direction: Annotated[
        Literal["minimize", "maximize"], typer.Option(help="Whether smaller or larger is better.")
    ] = "minimize",
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, earlier calls included.")] = 20,
    sampler: Annotated[Literal["tpe", "random", "grid", "cmaes"], typer.Option(help="How values are drawn.")] = "tpe",
    pruner: Annotated[
        Literal["median", "none"],
        typer.Option(help="Stop a trial whose intermediate values are worse than the median of earlier trials."),
    ] = "none",
    watch: Annotated[
        str,
        typer.Option(help="[STAGE:]METRIC of the tracked run that the pruner uses; smaller is better."),
    ] = "val_mse",
    jobs: Annotated[int, typer.Option(min=1, help="Number of trials that run at once.")] = 1,
    name: Annotated[str | None, typer.Option(help="Name of the search; default: made from its settings.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several machines share; default: a file under .cache.")
    ] = None,
    seed: Seed = 42,
    no_dvc: Annotated[bool, typer.Option("--no-dvc", help="Run a command of subspacelab instead of a stage.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run nothing.")] = False,
) -> None:
    """Searches for good parameters, an experiment per trial.

    \b
    subspacelab tune compare_lowrank -S train_lowrank.lr=loguniform:1e-5,1e-3 \\
        -S rank=choice:64,128 --metric cosine_network --direction maximize

    Optuna proposes the values. The same command continues a search that was stopped. Trials are child runs of one
    MLflow run in the experiment tune. Without DVC, the metric is one of the command's tracked run:

    \b
    subspacelab tune --no-dvc -S lr=loguniform:1e-5,1e-3 --metric best_val_mse \\
        -- lowrank train --features data/features --results-dir results/{trial}
    """
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install '.[tune]' in the clone")
    from subspacelab.pipeline.display import print_study
    from subspacelab.pipeline.logging import read_runs, recorded_study, watch_runs
    from subspacelab.pipeline.plots import draw_study
    from subspacelab.pipeline.search_space import parse_axes
    from subspacelab.pipeline.tuning import (
        FOLDER,
        Commands,
        Experiments,
        Search,
        grid_size,
        name_of,
        open_study,
        show_plan,
    )

    axes = parse_axes(set_param)
    what = shlex.join(stage) if no_dvc else stage[0]
    job = f"{what} by {' '.join(map(str, axes))} to {direction} {metric}"
    name = name or name_of(what, job)
    tried = Commands(stage, name) if no_dvc else _experiments(stage, metric, axes)
    total = min(trials, grid_size(axes)) if sampler == "grid" else trials
    if dry_run:
        print("\n".join(show_plan(axes, tried, total)))
        return
    study = open_study(
        name, storage, axes=axes, job=job, direction=direction, sampler=sampler, pruner=pruner, seed=seed
    )
    with recorded_study(study, {"search": job, "sampler": sampler, "pruner": pruner, "seed": seed}) as record:
        if isinstance(tried, Experiments) and (record or pruner == "none"):
            value: Value = tried.value
        elif record:
            value = read_runs(record.client, metric)
        else:
            raise ValueError("--no-dvc and --pruner read tracked runs, and TRACKING is off; leave one of them out")
        search = Search(study, axes, tried, value, total, quiet=jobs > 1)
        if record:
            search.told = partial(record.log_trials, axes, tried, metric)
            search.watch = watch_runs(record.client, watch) if pruner == "median" else None
            search.told()  # what a search that was killed has left out
        search.run(jobs)
        pictures = draw_study(FOLDER / name, study, metric)
        if record:
            record.log_pictures(pictures)
    print_study(study, axes, tried, metric, pictures)


def _experiments(stages: list[str], metric: str, axes: "Sequence[Axis]") -> "Experiments":
    from subspacelab.pipeline.dvc_process import require_dvc, require_usable_path
    from subspacelab.pipeline.params import PARAMS, read_yaml
    from subspacelab.pipeline.search_space import find_metric, require_stage
    from subspacelab.pipeline.sweep import Setting, Trial, require_known
    from subspacelab.pipeline.tuning import Experiments

    require_dvc()
    require_usable_path(Path.cwd())
    if len(stages) > 1:
        raise ValueError(f"tune takes one stage, got {' '.join(stages)}; earlier stages run if they must")
    require_known([Trial(tuple(Setting(axis.key, "") for axis in axes))], read_yaml(PARAMS))
    found = find_metric(metric)
    require_stage(stages[0], found)
    return Experiments(stages, found)


def _figures(names: set[str]) -> "Mapping[str, Mapping[str, float]]":
    """Experiment -> its headline metrics; DVC's metrics if nothing is tracked."""
    from importlib.util import find_spec

    from subspacelab.pipeline.experiments import read_experiments
    from subspacelab.tracking.runs import tracking_wanted

    experiments = [experiment for experiment in read_experiments() if experiment.name in names]
    tracked: Mapping[str, Mapping[str, float]] = {}
    if tracking_wanted() and find_spec("mlflow"):
        from subspacelab.pipeline.sync import headlines
        from subspacelab.tracking.mlflow_tracker import one_line

        uri, client, _ = _connected([])
        with one_line(uri):
            tracked = headlines(client, experiments)
    return {e.name: tracked.get(e.name) or e.metrics for e in experiments}


def _connected(names: list[str]) -> tuple[str, Any, dict[str, str]]:
    """The store's URI, its client and the experiments' ids. The store's lock is released: the work may be long."""
    from subspacelab.tracking.runs import open_store, usable_store

    uri = usable_store()
    with open_store(uri, names) as (client, ids):
        return uri, client, ids


@runs.command()
def sync(
    all_commits: Annotated[
        bool, typer.Option("--all-commits", help="Experiments of all commits, not only the last one.")
    ] = False,
    create_missing: Annotated[
        bool,
        typer.Option("--create-missing", help="Create a run for each experiment without one."),
    ] = False,
) -> None:
    """Links DVC's experiments to the runs that made their results.

    Runs of an experiment's name get the tag dvc.exp.rev. A stage that DVC took from its run cache has no
    such run: the run that made the same outs, found by their MD5, gets the name in its tag dvc.exp.also.
    Records that the store could not take earlier are delivered first.
    """
    from subspacelab.pipeline.display import print_deliveries, print_synced
    from subspacelab.pipeline.dvc_process import require_dvc
    from subspacelab.pipeline.experiments import read_experiments
    from subspacelab.pipeline.sync import sync_experiments
    from subspacelab.tracking.mlflow_tracker import one_line
    from subspacelab.tracking.undelivered import deliver_undelivered

    uri, client, ids = _connected(["pipeline"])
    with one_line(uri):
        deliveries = deliver_undelivered(client, uri)
    if deliveries:
        print_deliveries(deliveries)
    require_dvc()
    experiments = read_experiments(all_commits)
    with one_line(uri):
        print_synced(sync_experiments(client, uri, ids["pipeline"], experiments, create_missing=create_missing))


@runs.command()
def reap() -> None:
    """Ends RUNNING runs of this host whose process is gone.

    Their status becomes KILLED. Every tracked run does the same when it starts; this command does it without
    starting a run.
    """
    from subspacelab.pipeline.display import print_reaped
    from subspacelab.tracking.runs import open_store, reap_dead_runs, usable_store

    with open_store(usable_store(), [], reap=False) as (client, _):
        dead = [client.get_run(run_id) for run_id in reap_dead_runs(client)]
    print_reaped(dead)


@metrics.command()
def check(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    reference: Annotated[Path, typer.Option(help="The committed metrics.")] = REFERENCE,
    tolerances: Annotated[Path, typer.Option(help="Allowed difference of each metric, with the reason.")] = TOLERANCES,
) -> None:
    """Compares an experiment's metrics with committed ones.

    Exit code 1 if a metric is out of its tolerance, missing or new.
    """
    from subspacelab.pipeline.display import print_differences
    from subspacelab.pipeline.metrics import compare_metrics, read_tolerances, require_equal

    expected = _read_reference(reference)
    allowed = read_tolerances(tolerances)
    differences = compare_metrics(expected, _metrics_of(experiment), allowed)
    if differences:
        print_differences(differences)
    require_equal(differences, len(expected))
    print(f"{len(expected)} metrics are within their tolerances")


@metrics.command()
def write(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    reference: Annotated[Path, typer.Option(help="File to write.")] = REFERENCE,
    tolerances: Annotated[
        Path, typer.Option(help="Selects the metrics: those that match one of its patterns.")
    ] = TOLERANCES,
) -> None:
    """Stores an experiment's metrics as the new committed ones."""
    from subspacelab.core.files import write_json
    from subspacelab.pipeline.metrics import compared, read_tolerances

    if reference.exists():
        _read_reference(reference)  # anything else is not ours to replace
    allowed = read_tolerances(tolerances)
    write_json(reference, compared(_metrics_of(experiment), allowed))


def _read_reference(path: Path) -> dict[str, float]:
    """Reads what `metrics write` wrote; ValueError for any other file."""
    from subspacelab.core.files import read_json
    from subspacelab.core.settings import validate

    figures = validate(dict[str, float], read_json(path), where=str(path))
    others = [name for name in figures if ":" not in name]
    if others:
        raise ValueError(f"{path}: {others[0]!r} is not a metric <file>:<key>; give a file that 'metrics write' wrote")
    return figures


def _metrics_of(name: str) -> dict[str, float]:
    from subspacelab.pipeline.dvc_process import require_dvc
    from subspacelab.pipeline.experiments import read_details, read_experiments

    require_dvc()
    found = {experiment.name: experiment.rev for experiment in read_experiments()}
    if name not in found:
        raise ValueError(f"the last commit has no experiment {name!r}; it has {sorted(found)}: see dvc exp show")
    return read_details(found[name])
