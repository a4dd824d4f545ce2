"""Comparison of a run's metrics with committed ones, within the differences that another CPU may cause."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite, isnan
from pathlib import Path

from subspacelab.core.settings import validate
from subspacelab.pipeline.params import read_yaml


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference of metrics: `absolute + relative * |reference|`."""

    metrics: str
    """Pattern for their names, `<file>:<dotted key>`, with `*` and `?`; if several match, the first counts."""
    reason: str
    """Why this difference is allowed."""
    relative: float = 0.0
    """Share of the reference."""
    absolute: float = 0.0
    """In the unit of the metric."""

    def allowed(self, reference: float) -> float:
        """The largest deviation from `reference`."""
        return self.absolute + self.relative * abs(reference)


@dataclass(frozen=True)
class Difference:
    """A metric that is out of its tolerance."""

    name: str
    """The metric."""
    reference: float | None
    """The committed value; None when there is none."""
    found: float | None
    """The value found; None when there is none."""
    allowed: float
    """The largest allowed difference."""


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
    """The metrics that match a tolerance; only these are compared."""
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
    """ValueError if there are differences."""
    if differences:
        raise ValueError(
            f"{len(differences)} metrics are further from the {total} committed ones than they may be;"
            " mend the cause (another kind of CPU trains otherwise), or write new ones ('subspacelab metrics write')"
            " and say why in the commit"
        )
