"""Trainings of one method at several learning rates: the choice of a rate, and tables of all of them."""

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
"""Accuracy on the new task at which methods are compared, interpolated between rates."""


@dataclass(frozen=True)
class Training:
    """One training, and the knowledge of the model after it."""

    seed: int
    """Seed of the adapter and of the order of the rows."""
    rate: float
    """Peak learning rate of AdamW."""
    chosen: bool
    """Whether validation problems chose this rate."""
    knowledge: Knowledge
    """Knowledge of the model after the training."""


def choose_rate(validation: Mapping[float, float], num_problems: int) -> float:
    """The smallest rate whose validation accuracy is within one standard error of the best, sqrt(p (1 - p) / n).

    Only the new task decides, since a user who fine-tunes a model cannot measure what it forgets. Among rates that
    `num_problems` cannot distinguish, the smallest changes the model least (one-standard-error rule, Breiman et al.
    1984).
    """
    best = max(validation.values())
    error = math.sqrt(best * (1 - best) / num_problems)
    return min(rate for rate, accuracy in validation.items() if accuracy >= best - error)


def chosen_ones(trainings: Sequence[Training]) -> list[Training]:
    """The trainings at the chosen rate, one per seed."""
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
    """method, rate, chosen, num_seeds, mean and std of each measure over the seeds; one row per rate, the base first.

    The deviation is the sample's (n - 1), and 0 for one seed. Without a base there is no row for it.
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
    """For each seed, the measure at task accuracy `EQUAL_TASK`, interpolated linearly between two neighbouring rates.

    Empty unless every seed has two neighbouring rates around that accuracy, and the measure exists.
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
    """method, measure, mean, std (n - 1), num_seeds of `at_equal_task`, for methods that reach that accuracy."""
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

    `at` is `chosen rate` or `equal task`. Not corrected for the number of pairs. Only for methods with at least two
    seeds; a pair whose values do not vary over the seeds has no df and no p.
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
    """The measure for each seed; empty if it was not taken."""
    if at == "equal task":
        return at_equal_task(trainings, measure)
    values = [getattr(t.knowledge, measure) for t in chosen_ones(trainings)]
    return [] if None in values else values


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """mean(a) - mean(b), its standard error, the degrees of freedom and the two-sided p of Welch's t-test (1947)."""
    difference = float(np.mean(a) - np.mean(b))
    error = math.sqrt(sum(float(np.var(x, ddof=1)) / len(x) for x in (a, b) if np.ptp(x)))
    df = p = math.nan
    if np.ptp(a) or np.ptp(b):  # the deviation of three equal numbers may be 1e-17
        from scipy import stats  # half a second, which a training need not wait for

        test = stats.ttest_ind(a, b, equal_var=False)
        df, p = float(test.df), float(test.pvalue)
    return {"difference": difference, "standard_error": error, "df": df, "p": p}


def write_knowledge(path: Path, base: Knowledge | None, found: Sequence[Training]) -> None:
    """Writes the base's knowledge and every training of one method; null and an empty list if it was not measured."""
    write_json(path, {"base": asdict(base) if base else None, "trainings": [asdict(training) for training in found]})


def read_knowledge(path: Path) -> tuple[Knowledge | None, list[Training]]:
    """Reads what `write_knowledge` wrote; ValueError names the file and what is wrong."""
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != {"base", "trainings"}:
        raise ValueError(f"{path}: must hold the keys 'base' and 'trainings'; train again")
    if content["base"] is None:
        return None, []
    base = validate(Knowledge, content["base"], where=f"{path}: base")
    return base, validate(list[Training], content["trainings"], where=f"{path}: trainings")
