"""What a study of forgetting found: curves of recall over task, and what of them is told in one number."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.core.settings import validate
from subspacelab.nullspace.forgetting.curve import CLOCKS, Curve
from subspacelab.nullspace.forgetting.scores import Scores
from subspacelab.nullspace.rates import choose_rate

LEVEL = 0.8
"""Share of the best task score at which methods are compared."""
RECALLS = ("recall", "recall_first", "recall_ranked")
"""What is kept, as shares of one."""
HEADLINE = "recall_first"
"""The recall that methods are ranked by: exact answers tell the form of an answer too, and mean ranks hardly move."""
MEASURES = ("task", "validation", *RECALLS, "ce", "delta_ce", "kl_old", "kl_new")
"""The scores of a model that make columns."""
RESULTS, TABLES = "results.json", ("curves.csv", "knowledge.csv", "costs.csv")
"""Files of a study: all of it, and its tables."""


@dataclass(frozen=True)
class Forgetting:
    """A study, finished or not."""

    model_id: str
    """The base."""
    num_validation: int
    """Problems that the rates were chosen on."""
    base: Scores
    """What the base knows."""
    curves: list[Curve]
    """Every training."""
    seconds: dict[str, dict[str, float]]
    """`name_of` a training -> median seconds of a step, by the wall and of the processor; no two runs share them."""

    @property
    def chosen(self) -> dict[str, float]:
        """Method -> its learning rate, chosen on validation problems after the first seed's trainings."""
        found = {}
        for method, curves in self._by_method().items():
            first = [curve for curve in curves if curve.seed == curves[0].seed]
            validation = {curve.rate: curve.points[-1].scores.validation for curve in first}
            found[method] = choose_rate(validation, self.num_validation)
        return found

    def _by_method(self) -> dict[str, list[Curve]]:
        methods = dict.fromkeys(curve.method for curve in self.curves)
        return {method: [curve for curve in self.curves if curve.method == method] for method in methods}

    def curves_table(self) -> pd.DataFrame:
        """method, rate, seed, chosen, step and every measure: a row per point, the base first, at step 0."""
        chosen = self.chosen
        rows = [{"method": "base", "rate": math.nan, "seed": 0, "chosen": True, "step": 0} | _measures(self.base)]
        for c in self.curves:
            names = {"method": c.method, "rate": c.rate, "seed": c.seed, "chosen": c.rate == chosen[c.method]}
            rows += [names | {"step": point.step} | _measures(point.scores) for point in c.points]
        return pd.DataFrame(rows, columns=["method", "rate", "seed", "chosen", "step", *MEASURES])

    @property
    def level(self) -> float:
        """The task score at which methods are compared: 0.8 of the best that any training at a chosen rate reaches."""
        chosen = self.chosen
        tasks = [p.scores.task for c in self.curves if c.rate == chosen[c.method] for p in c.points]
        return LEVEL * max(tasks, default=0.0)

    def table(self) -> pd.DataFrame:
        """A row per method at its chosen rate, means and deviations (n - 1) over the seeds, the best area first.

        The measures are those at the end of the training; `<recall>_area` is the area under the recall over the task
        (`area`), `<recall>_at_level` the recall where the task first reaches `level`, NaN where some seed does not.
        """
        level, rows = self.level, []
        for method, rate in self.chosen.items():
            curves = [curve for curve in self._by_method()[method] if curve.rate == rate]
            numbers = pd.DataFrame([self._numbers(curve, level) for curve in curves])
            row: dict[str, Any] = {"method": method, "rate": rate, "num_seeds": len(curves), "level": level}
            for name in numbers:
                row[f"{name}_mean"] = float(numbers[name].mean(skipna=False))
                row[f"{name}_std"] = float(numbers[name].std(skipna=False)) if len(curves) > 1 else math.nan
            rows.append(row | {"num_parameters": curves[0].num_parameters})
        return pd.DataFrame(rows).sort_values(f"{HEADLINE}_area_mean", ascending=False, kind="stable")

    def _numbers(self, curve: Curve, level: float) -> dict[str, float]:
        found = _measures(curve.points[-1].scores)
        for measure in RECALLS:
            path = self.path(curve, measure)
            found |= {f"{measure}_area": area(path), f"{measure}_at_level": at_level(path, level)}
        return found

    def path(self, curve: Curve, measure: str) -> list[tuple[float, float]]:
        """(task, recall) along a training, from the base on."""
        return [(s.task, getattr(s, measure)) for s in (self.base, *(point.scores for point in curve.points))]

    def costs_table(self) -> pd.DataFrame:
        """method, rate, seed, num_parameters and seconds of a step of each training; seconds are of one machine."""
        rows = [
            {"method": c.method, "rate": c.rate, "seed": c.seed, "num_parameters": c.num_parameters}
            | self.seconds.get(name_of(c.method, c.rate, c.seed), {})
            for c in self.curves
        ]
        return pd.DataFrame(rows, columns=["method", "rate", "seed", "num_parameters", *CLOCKS])

    def save(self, folder: Path) -> None:
        """Writes results.json and the tables curves.csv, knowledge.csv, costs.csv into `folder`."""
        write_json(folder / RESULTS, asdict(self))
        tables = (self.curves_table(), self.table(), self.costs_table())
        for name, table in zip(TABLES, tables, strict=True):
            write_csv(folder / name, table)

    @classmethod
    def load(cls, folder: Path) -> "Forgetting":
        """The inverse of `save`; ValueError names the file and what is wrong."""
        path = folder / RESULTS
        return validate(cls, read_json(path), where=str(path))


def name_of(method: str, rate: float, seed: int) -> str:
    """The name of a training, and of its folder."""
    return f"{method}/{rate:g}/seed-{seed}"


def area(path: Sequence[tuple[float, float]]) -> float:
    """Area under recall over task in [0, 1]^2 along a training: 1 is everything learned and nothing forgotten.

    At each task score counts the recall where it is first reached, linear between points; up to the base's task the
    base's recall; beyond the best task 0, so that what is not learned is worth nothing however well the old is kept.
    """
    best, total = path[0][0], path[0][0] * path[0][1]
    for (low, before), (high, after) in pairwise(path):
        if high > best:
            start = before + (after - before) * (best - low) / (high - low) if best > low else before
            total += (high - best) * (start + after) / 2
            best = high
    return total


def at_level(path: Sequence[tuple[float, float]], level: float) -> float:
    """The recall where the task first reaches `level`, linear between points; NaN where it does not."""
    if path[0][0] >= level:
        return path[0][1]
    for (low, before), (high, after) in pairwise(path):
        if level <= high:
            return before + (after - before) * (level - low) / (high - low)
    return math.nan


def _measures(scores: Scores) -> dict[str, float]:
    return {name: getattr(scores, name) for name in MEASURES}
