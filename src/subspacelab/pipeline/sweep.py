"""A sweep as a plain loop over `dvc exp run --temp`, for whoever's queue misbehaves."""

import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from subspacelab.pipeline.combinations import Trial
from subspacelab.pipeline.dvc_process import dvc_run, experiment_commit, restore_experiment


@dataclass(frozen=True)
class Outcome:
    """What became of one trial."""

    trial: Trial
    """Its values."""
    status: str
    """`done` (git keeps its commit), `there` (it was run before) or `failed`."""


def trial_words(trial: Trial, targets: Sequence[str]) -> list[str]:
    """What stands behind `dvc`. In a temporary copy params.yaml stays as it is, and may be edited meanwhile."""
    values = [word for setting in trial.settings for word in ("-S", str(setting))]
    return ["exp", "run", "--temp", "-n", trial.name, *values, *targets]


def show_plan(trials: Sequence[Trial], targets: Sequence[str], there: Collection[str]) -> list[str]:
    """The commands that a sweep would run, one a line, those of experiments that exist as comments."""
    commands = [(trial.name, shlex.join(["dvc", *trial_words(trial, targets)])) for trial in trials]
    return [f"# {command}  # exists" if name in there else command for name, command in commands]


def run_sweep(
    trials: Sequence[Trial], targets: Sequence[str], there: Collection[str], *, force: bool = False
) -> list[Outcome]:
    """Runs one trial after the other, and goes on when one fails; progress on standard error.

    `there` names the experiments that exist: they are left out, or with `force` run anew (a stage whose inputs are the
    same still comes from DVC's cache), and are as before when that fails.
    """
    outcomes = []
    for number, trial in enumerate(trials, start=1):
        at = f"[{number} of {len(trials)}] {trial.name}"
        if trial.name in there and not force:
            _say(f"{at}: exists, left out (--force runs it anew)")
            outcomes.append(Outcome(trial, "there"))
            continue
        _say(at)
        failure = _run_trial(trial, targets)
        if failure:
            _say(f"{at}: {failure}; going on")
        outcomes.append(Outcome(trial, "failed" if failure else "done"))
    return outcomes


def _run_trial(trial: Trial, targets: Sequence[str]) -> str | None:
    """Why there is no new experiment; None when there is."""
    before, made = experiment_commit(trial.name), None
    try:
        if before:
            dvc_run("exp", "remove", "--quiet", trial.name)
        code = dvc_run(*trial_words(trial, targets))
        made = experiment_commit(trial.name)
    finally:
        if before and not made:
            restore_experiment(trial.name, before)
    if code:
        return f"failed with exit code {code}"
    return None if made else "failed: DVC kept no experiment of that name"


def require_success(outcomes: Sequence[Outcome]) -> None:
    """Raises ValueError that names the experiments that failed."""
    failed = [outcome.trial.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} experiments failed: {' '.join(failed)};"
            " the same command runs them again and leaves out those that are done"
        )


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
