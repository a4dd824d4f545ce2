"""Metrics of a run held against committed ones: equal up to what another CPU may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite, isnan
from pathlib import Path

from subspacelab.core.settings import validate
from subspacelab.pipeline.params import read_yaml


@dataclass(frozen=True)
class Tolerance:
    """How far metrics may be off: at most `absolute + relative * |reference|`."""

    metrics: str
    """Pattern of their names, `<file>:<dotted key>`, with `*` and `?`; of several that fit, the first counts."""
    reason: str
    """Why that far."""
    relative: float = 0.0
    """Share of the reference."""
    absolute: float = 0.0
    """In the metric's own unit."""

    def allowed(self, reference: float) -> float:
        """The largest deviation from `reference`."""
        return self.absolute + self.relative * abs(reference)


@dataclass(frozen=True)
class Difference:
    """A metric that is further off than it may be."""

    name: str
    """The metric."""
    reference: float | None
    """The committed value; None when there is none."""
    found: float | None
    """The value found; None when there is none."""
    allowed: float
    """The deviation that would have passed."""


def read_tolerances(path: Path) -> list[Tolerance]:
    """Reads `tolerances: [{metrics: ..., reason: ..., relative: ..., absolute: ...}, ...]`."""
    rows = read_yaml(path).get("tolerances")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list 'tolerances'")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: tolerances[{i}]: expected metrics, reason and a tolerance, got {row!r}")
    return [validate(Tolerance, row, where=f"{path}: tolerances[{i}]") for i, row in enumerate(rows)]


def compared(metrics: Mapping[str, float], tolerances: Sequence[Tolerance]) -> dict[str, float]:
    """Those metrics that a tolerance speaks of; the others are not compared."""
    return {name: value for name, value in metrics.items() if _tolerance(name, tolerances)}


def compare_metrics(
    reference: Mapping[str, float], found: Mapping[str, float], tolerances: Sequence[Tolerance]
) -> list[Difference]:
    """The metrics that differ by more than their tolerance, and those that only one side has, by name."""
    differences = []
    for name in sorted({*reference, *found}):
        tolerance = _tolerance(name, tolerances)
        if tolerance is None:
            continue
        expected, got = reference.get(name), found.get(name)
        allowed = 0.0 if expected is None else tolerance.allowed(expected)
        if expected is None or got is None or not _equal(expected, got, allowed):
            differences.append(Difference(name, expected, got, allowed))
    return differences


def _tolerance(name: str, tolerances: Sequence[Tolerance]) -> Tolerance | None:
    return next((tolerance for tolerance in tolerances if fnmatchcase(name, tolerance.metrics)), None)


def _equal(expected: float, got: float, allowed: float) -> bool:
    if not (isfinite(expected) and isfinite(got)):
        return expected == got or (isnan(expected) and isnan(got))
    return abs(got - expected) <= allowed


def require_equal(differences: Sequence[Difference], total: int) -> None:
    """Raises ValueError when there are differences."""
    if differences:
        raise ValueError(
            f"{len(differences)} metrics are further from the {total} committed ones than they may be;"
            " mend the cause, or write new ones ('subspacelab metrics write') and say why in the commit"
        )
