"""`-S key=value,value` as experiments: every combination, one `dvc exp run --temp` after another."""

import hashlib
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from subspacelab.pipeline.dvc_process import dvc_run, experiment_commit, restore_experiment

_OPEN, _CLOSE, _QUOTES = "[{(", "]})", "'\""
_LONGEST = 100  # characters of a name; it is a file in git and a cell in a table


@dataclass(frozen=True)
class Setting:
    """One value of one parameter."""

    key: str
    """The parameter's name for DVC: `rank`, `train_lowrank.lr`, `pipelines/studies/smoke.yaml:train_lowrank.epochs`,
    `+new`."""
    value: str
    """The value, as the user typed it."""

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True)
class Trial:
    """One combination of a sweep."""

    settings: tuple[Setting, ...]
    """A value for each swept parameter."""

    @property
    def name(self) -> str:
        """`rank=64,train_lowrank.lr=5e-4`; with a digest if git does not allow that name, or if it is too long."""
        whole = ",".join(map(str, self.settings))
        shown = ",".join(f"{s.key.rpartition(':')[2].lstrip('+')}={s.value}" for s in self.settings)
        name = re.sub(r"[^A-Za-z0-9._=+,-]+|\.{2,}", "-", shown)
        if name == whole and len(name) <= _LONGEST and not name.endswith((".", ".lock")):
            return name
        return f"{name[:_LONGEST].rstrip('.')}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def combine(given: Sequence[str]) -> list[Trial]:
    """The Cartesian product of `key=value,value,...`; the last key varies fastest.

    Commas inside brackets or quotes belong to a value. ValueError for text in another form, and for a key or a value
    that is given twice.
    """
    if not given:
        raise ValueError("nothing to sweep over; give -S key=value,value at least once, such as -S rank=64,128")
    axes = [_axis(text) for text in given]
    keys = [axis[0].key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"-S {key} is given twice; put its values into one: -S {key}=value,value")
    return [Trial(settings) for settings in product(*axes)]


def _axis(text: str) -> list[Setting]:
    key, equals, values = text.partition("=")
    found = split_values(values)
    if not key or not equals or not all(found):
        raise ValueError(f"-S {text!r} is not of the form key=value,value, such as rank=64,128")
    if len(set(found)) < len(found):
        raise ValueError(f"-S {text!r} holds a value twice; leave one out")
    return [Setting(key, value) for value in found]


def split_values(text: str) -> list[str]:
    """Splits at the commas outside brackets and quotes: `[a,b],c` gives `[a,b]` and `c`."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        else:
            depth += (letter in _OPEN) - (letter in _CLOSE)
    if depth or quote:
        raise ValueError(f"{text!r}: a bracket or quote does not close; quote the whole for the shell, -S 'key=[a,b]'")
    return [value.strip() for value in values]


def require_known(trials: Sequence[Trial], params: Mapping[str, Any]) -> None:
    """ValueError for a key that params.yaml does not have, before hours of work.

    `+key` (a new one) and `file:key` are left to DVC.
    """
    for setting in trials[0].settings:
        if setting.key.startswith("+") or ":" in setting.key or "[" in setting.key:
            continue
        place: Any = params
        for part in setting.key.split("."):
            if not isinstance(place, Mapping) or part not in place:
                allowed = sorted(place) if isinstance(place, Mapping) else "nothing below it"
                raise ValueError(f"-S {setting.key}: params.yaml has no {part!r} there; it has {allowed}")
            place = place[part]


@dataclass(frozen=True)
class Outcome:
    """The result of one trial."""

    trial: Trial
    """The trial."""
    status: str
    """`done` (git has its commit), `there` (it existed before) or `failed`."""


def trial_words(trial: Trial, targets: Sequence[str]) -> list[str]:
    """The arguments of `dvc` for a trial, which runs in a temporary copy: params.yaml may be edited meanwhile."""
    values = [word for setting in trial.settings for word in ("-S", str(setting))]
    return ["exp", "run", "--temp", "-n", trial.name, *values, *targets]


def show_plan(trials: Sequence[Trial], targets: Sequence[str], there: Collection[str]) -> list[str]:
    """The commands that a sweep would run, one per line; commands of existing experiments as comments."""
    commands = [(trial.name, shlex.join(["dvc", *trial_words(trial, targets)])) for trial in trials]
    return [f"# {command}  # exists" if name in there else command for name, command in commands]


def run_sweep(
    trials: Sequence[Trial], targets: Sequence[str], there: Collection[str], *, force: bool = False
) -> list[Outcome]:
    """Runs one trial after another, and continues after a failure; progress goes to standard error.

    `there` names the existing experiments: they are skipped or, with `force`, run again (stages with unchanged inputs
    still come from DVC's cache); an experiment whose new run fails is restored.
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
    """The reason why there is no new experiment; None on success."""
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
    """ValueError, naming the failed experiments, if there are any."""
    failed = [outcome.trial.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes)} experiments failed: {' '.join(failed)};"
            " the same command runs them again and leaves out those that are done"
        )


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
