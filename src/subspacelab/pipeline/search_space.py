"""The parameters of a search, `-S key=loguniform:1e-5,1e-3`, and its metric, a number in reports/ found by its name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspacelab.pipeline.experiments import REPORTS, numbers_of
from subspacelab.pipeline.params import read_yaml
from subspacelab.pipeline.stage import DVC_FILE, read_declaration
from subspacelab.pipeline.sweep import Setting, Trial, split_values

KINDS = ("uniform", "loguniform", "int", "logint", "choice")


@dataclass(frozen=True)
class Axis:
    """One parameter and the distribution of its values."""

    key: str
    """The parameter's name for DVC or the command."""
    kind: str
    """Kind of distribution, one of `KINDS`."""
    values: tuple[str, ...]
    """The two bounds, or the choices, as the user typed them."""

    def __str__(self) -> str:
        return f"{self.key}={self.kind}:{','.join(self.values)}"

    def distribution(self) -> Any:
        """The distribution for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution(self.values)
        make: Callable[..., Any] = IntDistribution if self.kind.endswith("int") else FloatDistribution
        return make(*map(_number(self.kind), self.values), log=self.kind.startswith("log"))


def parse_axes(given: Sequence[str]) -> list[Axis]:
    """`key=KIND:low,high` or `key=choice:a,b,...`; ValueError, in one line, for another form or an invalid range."""
    if not given:
        raise ValueError(
            "nothing to search over; give -S key=KIND:..., such as -S train_lowrank.lr=loguniform:1e-5,1e-3"
        )
    axes = [_axis(text) for text in given]
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"-S {key} is given twice; leave one out")
    return axes


def _axis(text: str) -> Axis:
    key, _, rest = text.partition("=")
    kind, colon, listed = rest.partition(":")
    if not key or not colon or kind not in KINDS:
        raise ValueError(f"-S {text!r} is not of the form key=KIND:values; KIND is one of {', '.join(KINDS)}")
    values = split_values(listed)
    if not all(values) or len(set(values)) < len(values):
        raise ValueError(f"-S {text!r} holds an empty value, or one twice")
    if kind != "choice":
        _require_range(text, kind, values)
    return Axis(key, kind, tuple(values))


def _require_range(text: str, kind: str, values: Sequence[str]) -> None:
    try:
        low, high = map(_number(kind), values)
    except ValueError:
        raise ValueError(f"-S {text!r}: {kind} takes two numbers, low,high") from None
    if not low < high < float("inf") or (kind.startswith("log") and low <= 0):
        raise ValueError(f"-S {text!r}: low must be below high{' and above 0' * kind.startswith('log')}, both finite")


def _number(kind: str) -> Callable[[str], float]:
    return int if kind.endswith("int") else float


def as_trial(axes: Sequence[Axis], drawn: Mapping[str, Any]) -> Trial:
    """The drawn values as a trial, with six digits each, so that the trial's name gives the values that are run."""
    shown = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in (drawn[a.key] for a in axes))
    return Trial(tuple(Setting(axis.key, value) for axis, value in zip(axes, shown, strict=True)))


@dataclass(frozen=True)
class Metric:
    """A number in reports/."""

    file: Path
    """File that holds it."""
    key: str
    """Dotted key in the file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.key}"


def find_metric(name: str, root: Path = REPORTS) -> Metric:
    """The number in reports/ that `name` means: its key, `<file>:<key>`, or parts that identify it.

    `lowrank/Sketch/cosine` is `reports/lowrank/details.json:methods.Sketch.cosine.mean`. ValueError if no number
    matches, or more than one.
    """
    known = numbers_of({str(file): file for file in sorted(root.rglob("*.json"))})
    if name not in known:
        found = [full for full in known if _is_part(_words(name), _words(full))]
        exact = [full for full in found if full.partition(":")[2] == name]
        if len({full.rpartition(".")[0] for full in found}) == 1 < len(found):  # a mean and its deviation
            found = [full for full in found if full.endswith(".mean")]
        found = exact or found
        if len(found) != 1:
            what = f"is not told from {', '.join(found[:4])}" if found else "is in no file of reports/"
            raise ValueError(f"metric {name!r} {what}; see dvc metrics show, or give <file>:<key>")
        name = found[0]
    file, _, key = name.partition(":")
    return Metric(Path(file), key)


def _words(name: str) -> list[str]:
    return re.split(r"[/.:]", name)


def _is_part(words: Sequence[str], of: Sequence[str]) -> bool:
    """Whether the words occur in `of` in this order."""
    rest = iter(of)
    return all(word in rest for word in words)


def require_stage(stage: str, metric: Metric) -> None:
    """ValueError if dvc.yaml does not have the stage, or if the stage does not write the metric's file.

    A metric of a later stage would keep its old value in every trial.
    """
    if metric.file in read_declaration(stage.partition("@")[0], path=DVC_FILE).outs:
        return
    for other in read_yaml(DVC_FILE)["stages"]:
        if metric.file in read_declaration(other, path=DVC_FILE).outs:
            raise ValueError(f"{metric} is written by stage {other}, not by {stage}; tune {other}")
