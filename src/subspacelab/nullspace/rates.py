"""Trainings of one method at several learning rates: which rate is chosen, and what all of them show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from subspacelab.core.files import read_json, write_json
from subspacelab.core.settings import validate
from subspacelab.nullspace.knowledge import BASE, MEASURES, RECALLS, Knowledge

EQUAL_TASK = 0.8
"""Share of the new task's problems at which methods are compared between their rates."""


@dataclass(frozen=True)
class Training:
    """One training, and what the model knows after it."""

    seed: int
    """Of the adapter and of the order of the rows."""
    rate: float
    """AdamW's peak learning rate."""
    chosen: bool
    """Whether this is the rate that was chosen on validation problems."""
    knowledge: Knowledge
    """What the model knows then."""


def choose_rate(validation: Mapping[float, float], num_problems: int) -> float:
    """The smallest rate whose validation accuracy is within one standard error of the best, sqrt(p (1 - p) / n).

    The new task alone decides, since who fine-tunes a model cannot see what it forgets; of rates that `num_problems`
    cannot tell apart the smallest moves the model least (the one-standard-error rule of Breiman et al. 1984).
    """
    best = max(validation.values())
    error = math.sqrt(best * (1 - best) / num_problems)
    return min(rate for rate, accuracy in validation.items() if accuracy >= best - error)


def chosen_ones(trainings: Sequence[Training]) -> list[Training]:
    """Those at the chosen rate, one of each seed."""
    return [training for training in trainings if training.chosen]


def trainings_table(found: Mapping[str, Sequence[Training]]) -> pd.DataFrame:
    """method, rate, seed, chosen and every measure of each training."""
    rows = [
        {"method": method, "rate": t.rate, "seed": t.seed, "chosen": t.chosen} | asdict(t.knowledge)
        for method, trainings in found.items()
        for t in trainings
    ]
    return pd.DataFrame(rows, columns=["method", "rate", "seed", "chosen", *MEASURES])


def knowledge_table(base: Knowledge | None, found: Mapping[str, Sequence[Training]]) -> pd.DataFrame:
    """method, rate, chosen, num_seeds, mean and std of each measure over the seeds; a row per rate, the base first.

    The deviation is the sample's (n - 1), and 0 of one seed. Without a base there is no row.
    """
    rows = []
    for method, trainings in [] if base is None else [(BASE, [Training(0, math.nan, True, base)]), *found.items()]:
        for rate in dict.fromkeys(t.rate for t in trainings):
            same = [t for t in trainings if t.rate == rate or method == BASE]
            values = pd.DataFrame([asdict(t.knowledge) for t in same]).astype(float)
            row: dict[str, Any] = {"method": method, "rate": rate, "chosen": same[0].chosen, "num_seeds": len(same)}
            for name in MEASURES:
                row[f"{name}_mean"] = float(values[name].mean())
                row[f"{name}_std"] = float(values[name].std()) if len(same) > 1 else 0.0 * row[f"{name}_mean"]
            rows.append(row)
    spreads = [f"{name}_{kind}" for name in MEASURES for kind in ("mean", "std")]
    return pd.DataFrame(rows, columns=["method", "rate", "chosen", "num_seeds", *spreads])


def at_equal_task(trainings: Sequence[Training], measure: str) -> list[float]:
    """Of each seed, the measure where the task reaches `EQUAL_TASK`, linear between its two neighbouring rates.

    Empty unless every seed has two neighbouring rates with that level between them, and the measure was taken.
    """
    found = []
    for seed in dict.fromkeys(t.seed for t in trainings):
        curve = [t.knowledge for t in sorted(trainings, key=lambda t: t.rate) if t.seed == seed]
        for low, high in pairwise(curve):
            a, b = getattr(low, measure), getattr(high, measure)
            if low.task < EQUAL_TASK <= high.task and a is not None:
                found.append(float(a + (b - a) * (EQUAL_TASK - low.task) / (high.task - low.task)))
                break
        else:
            return []
    return found


def equal_task_table(found: Mapping[str, Sequence[Training]]) -> pd.DataFrame:
    """method, measure, mean, std (n - 1), num_seeds of `at_equal_task`, where there is such a point."""
    rows = []
    for method, trainings in found.items():
        for measure in RECALLS:
            values = at_equal_task(trainings, measure)
            if values:
                std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                row = {"method": method, "measure": measure, "mean": float(np.mean(values)), "std": std}
                rows.append(row | {"num_seeds": len(values)})
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "std", "num_seeds"])


def differences_table(found: Mapping[str, Sequence[Training]]) -> pd.DataFrame:
    """method, other, at, measure, difference of the means over seeds, its standard error, df and p (`welch`).

    `at` is `chosen rate` or `equal task`. Not corrected for the number of pairs. Of methods of two seeds and more; a
    pair whose values do not vary over the seeds has no df and p.
    """
    rows = []
    for method, other in combinations(found, 2):
        for at, measures in (("chosen rate", (*RECALLS, "task", "drift")), ("equal task", RECALLS)):
            for measure in measures:
                a, b = (_values(found[name], at, measure) for name in (method, other))
                if min(len(a), len(b)) > 1:
                    names = {"method": method, "other": other, "at": at, "measure": measure}
                    rows.append(names | welch(a, b))
    columns = ["method", "other", "at", "measure", "difference", "standard_error", "df", "p"]
    return pd.DataFrame(rows, columns=columns)


def _values(trainings: Sequence[Training], at: str, measure: str) -> list[float]:
    """The measure of each seed; none where it was not taken."""
    if at == "equal task":
        return at_equal_task(trainings, measure)
    values = [getattr(t.knowledge, measure) for t in chosen_ones(trainings)]
    return [] if None in values else values


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """mean(a) - mean(b), its standard error, the degrees of freedom and two-sided p of Welch's t-test (1947)."""
    difference = float(np.mean(a) - np.mean(b))
    error = math.sqrt(sum(float(np.var(x, ddof=1)) / len(x) for x in (a, b) if np.ptp(x)))
    df = p = math.nan
    if np.ptp(a) or np.ptp(b):  # the deviation of three equal numbers may be 1e-17
        from scipy import stats  # half a second, which a training need not wait for

        test = stats.ttest_ind(a, b, equal_var=False)
        df, p = float(test.df), float(test.pvalue)
    return {"difference": difference, "standard_error": error, "df": df, "p": p}


def write_knowledge(path: Path, base: Knowledge | None, found: Sequence[Training]) -> None:
    """Writes the base's knowledge and every training of one method; null and none where it was not measured."""
    write_json(path, {"base": asdict(base) if base else None, "trainings": [asdict(training) for training in found]})


def read_knowledge(path: Path) -> tuple[Knowledge | None, list[Training]]:
    """Reads it back; ValueError names the file and what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"base", "trainings"}:
        raise ValueError(f"{path}: must hold the keys 'base' and 'trainings'; train again")
    if content["base"] is None:
        return None, []
    base = validate(Knowledge, content["base"], where=f"{path}: base")
    return base, validate(list[Training], content["trainings"], where=f"{path}: trainings")
