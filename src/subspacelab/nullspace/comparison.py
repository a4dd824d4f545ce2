"""Adapters before and after training: which expectations hold, layer by layer, and all methods side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from subspacelab.core.files import write_csv, write_json
from subspacelab.core.references import canonical
from subspacelab.nullspace.knowledge import MEASURES, Knowledge
from subspacelab.nullspace.rates import (
    Training,
    differences_table,
    equal_task_table,
    knowledge_table,
    read_knowledge,
    trainings_table,
)
from subspacelab.nullspace.results import THRESHOLDS, LayerStats, Summary, Verification, read_stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "summary"
HEADLINE = ("recall", "task")
"""The measures of knowledge that are reported as headline numbers."""
PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
SAME_NORM = 1e-6  # relative: the norm of equal float32 tensors, computed on two machines
LEARNED = 1e-4  # share of ||x|| above which something was learned, as in the verdicts
FEED = 0.5  # relative change that the trained layers before a layer may make to its BX_ratio
ROUNDING = 1e-6  # of W_res + A_0 B_0 = W in float32, as a share of ||x||


@dataclass(frozen=True)
class Expectation:
    """One row of the expectation table."""

    metric: str
    """A field of LayerStats and of Summary."""
    wording: str
    """The expectation in words."""
    holds: Callable[[float, float], bool]
    """Whether (before, after) meets the expectation."""
    only: Literal["B frozen", "A_0 = 0", "all"]
    """Methods for which it is expected."""

    def applies(self, summary: Summary) -> bool:
        """Whether the adapter's method promises it."""
        return {"B frozen": summary.down_frozen, "A_0 = 0": summary.starts_at_zero, "all": True}[self.only]


def _near(share: float) -> Callable[[float, float], bool]:
    return lambda before, after: abs(after - before) <= share * abs(before)


EXPECTATIONS = (
    Expectation("BX_ratio", f"within {FEED:.0%} of before", _near(FEED), "B frozen"),
    Expectation("base_BX_ratio", "unchanged", _near(SAME_NORM), "B frozen"),
    Expectation("ABX_ratio", "from 0 to > 1e-4", lambda before, after: before == 0 and after > LEARNED, "A_0 = 0"),
    Expectation("DeltaX_ratio", "from 0 to > 1e-4", lambda before, after: before < ROUNDING and after > LEARNED, "all"),
    Expectation("A_weight_norm", "from 0", lambda before, after: before == 0 < after, "A_0 = 0"),
    Expectation("B_weight_norm", "unchanged", _near(SAME_NORM), "B frozen"),
)


def compare_stats(init: Verification, trained: Verification) -> pd.DataFrame:
    """method, layer, metric, before, after, expected, verdict: every layer and the summary against the table.

    `base_BX_ratio` is the stricter reading of "BX_ratio unchanged": on the frozen base's inputs only B can change it,
    while the live inputs of a layer also change with the trained layers before it. An expectation that the method does
    not promise is "not applicable". ValueError if the two files do not belong together.
    """
    _require_pair(init, trained)
    pairs: list[tuple[str, LayerStats | Summary, LayerStats | Summary]] = [
        (a.layer, a, b) for a, b in zip(init.stats, trained.stats, strict=True)
    ]
    pairs.append((SUMMARY, init.summary, trained.summary))
    rows = []
    for name, a, b in pairs:
        for expected in EXPECTATIONS:
            before, after = getattr(a, expected.metric), getattr(b, expected.metric)
            verdict = PASS if expected.holds(before, after) else FAIL
            if not expected.applies(init.summary):
                verdict = NOT_APPLICABLE
            row = {"method": init.summary.method, "layer": name, "metric": expected.metric}
            rows.append(row | {"before": before, "after": after, "expected": expected.wording, "verdict": verdict})
    return pd.DataFrame(rows)


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose expectation failed."""
    return table[table["verdict"] == FAIL]


def _require_pair(init: Verification, trained: Verification) -> None:
    a, b = init.summary, trained.summary
    if a.trained or not b.trained:
        raise ValueError(
            f"init has trained={a.trained}, trained has trained={b.trained}; give the statistics of the built adapter"
            " as init and those of the trained one as trained"
        )
    if a.method != b.method:
        raise ValueError(f"init is {a.method}, trained is {b.method}; compare one adapter with itself")
    layers, others = [s.layer for s in init.stats], [s.layer for s in trained.stats]
    if layers != others:
        odd = sorted(set(layers) ^ set(others)) or ["the order of the layers"]
        raise ValueError(f"{odd[0]} is not the same in both files; compare one adapter with itself")
    ranks = {s.rank for s in init.stats} ^ {s.rank for s in trained.stats}
    if ranks:
        raise ValueError(f"the two differ in rank {sorted(ranks)}; verify both alike")
    tokens = [asdict(found.summary.sample) | {"text": found.calib_dataset} for found in (init, trained)]
    for key, value in tokens[0].items():
        if canonical(value) != canonical(tokens[1][key]):
            raise ValueError(f"the two differ in {key} {value!r} and {tokens[1][key]!r}; verify both alike")


@dataclass(frozen=True)
class Comparison:
    """All methods of a study, side by side."""

    stats: pd.DataFrame
    """Every layer of every method before and after training, with verdicts."""
    knowledge: pd.DataFrame
    """One row per method and learning rate, the base first; empty if knowledge was not measured."""
    trainings: pd.DataFrame
    """One row per training."""
    equal_task: pd.DataFrame
    """What each method still knows at the same share of the task learned."""
    differences: pd.DataFrame
    """Differences between methods, with Welch's t-test over the seeds."""
    metrics: dict[str, Any]
    """By method: the ratios before and after, the number of failed expectations, knowledge at the chosen rate."""
    verified: dict[str, tuple[Verification, Verification]]
    """By method: the verifications before and after training."""

    @property
    def headline(self) -> dict[str, float]:
        """By method: BX_ratio after training and, if measured, recall and task; `random_BX_ratio` for a random B.

        The recall before any training is `llm_recall`, a metric of the checkpoint.
        """
        found = {}
        for method, (_, trained) in self.verified.items():
            found["random_BX_ratio"] = trained.summary.BX_ratio_random  # of the rank that they share
            found[f"{method}_BX_ratio"] = self.metrics[method]["trained"]["BX_ratio"]
            known = self.metrics[method].get("knowledge", {})
            found |= {f"{method}_{name}": known[name] for name in HEADLINE if name in known}
        return found

    def plot(self, kind: str = "knowledge") -> "Figure":
        """A matplotlib Figure: "before_after", "bx_ratio" or "knowledge"; SettingError for other kinds."""
        from subspacelab.nullspace.plots import KINDS
        from subspacelab.plotting.figures import draw_kind

        return draw_kind(KINDS, kind, self)

    def save(self, folder: Path, *, metrics: str = "metrics.json") -> None:
        """Writes stats.csv, knowledge.csv, the tables knowledge_*.csv and, under its name, `metrics`."""
        write_csv(folder / "stats.csv", self.stats)
        write_csv(folder / "knowledge.csv", self.knowledge)
        write_csv(folder / "knowledge_trainings.csv", self.trainings)
        write_csv(folder / "knowledge_equal_task.csv", self.equal_task)
        write_csv(folder / "knowledge_differences.csv", self.differences)
        write_json(folder / metrics, self.metrics)


def compare_methods(verified: Path, knowledge: Path, methods: Sequence[str]) -> Comparison:
    """Reads the verifications and the measured knowledge of each method.

    `verified` holds `<method>-init.json` and `<method>-trained.json`, `knowledge` holds `<method>.json`, which may say
    that nothing was measured; the tables of knowledge are then empty.
    """
    pairs = {name: _pair(verified, name) for name in methods}
    stats = pd.concat([compare_stats(*pair) for pair in pairs.values()], ignore_index=True)
    base, found = _knowledge({name: knowledge / f"{name}.json" for name in methods})
    table = knowledge_table(base, found)
    metrics: dict[str, Any] = {name: _metrics(pair, stats) for name, pair in pairs.items()}
    for row in table[table["chosen"].astype(bool)].dropna(axis="columns").to_dict("records"):
        known = {name: row[f"{name}_mean"] for name in MEASURES if f"{name}_mean" in row}
        metrics.setdefault(row["method"], {})["knowledge"] = known
    return Comparison(
        stats, table, trainings_table(found), equal_task_table(found), differences_table(found), metrics, pairs
    )


def _pair(folder: Path, method: str) -> tuple[Verification, Verification]:
    return read_stats(folder / f"{method}-init.json"), read_stats(folder / f"{method}-trained.json")


def _metrics(pair: tuple[Verification, Verification], stats: pd.DataFrame) -> dict[str, Any]:
    method = pair[0].summary.method
    states = zip(("init", "trained"), pair, strict=True)
    ratios = {state: {name: getattr(found.summary, name) for name in THRESHOLDS} for state, found in states}
    return ratios | {"failed_expectations": len(failures(stats[stats["method"] == method]))}


def _knowledge(files: Mapping[str, Path]) -> tuple[Knowledge | None, dict[str, list[Training]]]:
    """The base's knowledge, and the trainings of the methods whose knowledge was measured, all on one base."""
    base, found = None, dict[str, list[Training]]()
    for name, path in files.items():
        own, trainings = read_knowledge(path)
        if own is None:
            continue
        if base not in (None, own):
            raise ValueError(
                f"{path}: its base was measured with other results than that of {next(iter(found))}; train all again"
            )
        base, found[name] = own, trainings
    return base, found
