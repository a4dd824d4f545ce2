"""All methods of a study side by side: did each keep its promise, and what does each know now?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from subspacelab.files import write_json
from subspacelab.nullspace.compare_stats import compare_stats, failures
from subspacelab.nullspace.figures.before_after import draw_before_after
from subspacelab.nullspace.figures.knowledge import draw_knowledge
from subspacelab.nullspace.figures.layers import draw_bx_ratio
from subspacelab.nullspace.knowledge import MEASURES, Knowledge
from subspacelab.nullspace.outcome import read_knowledge
from subspacelab.nullspace.rates import (
    Training,
    differences_table,
    equal_task_table,
    knowledge_table,
    trainings_table,
)
from subspacelab.nullspace.stats import Verification, read_stats
from subspacelab.nullspace.verdicts import THRESHOLDS
from subspacelab.reports.tables import write_csv


@dataclass(frozen=True)
class Comparison:
    """What was found and written."""

    stats: pd.DataFrame
    """Before and after of every layer of every method, with verdicts."""
    knowledge: pd.DataFrame
    """One row per method and rate, the base first; empty where knowledge was not measured."""
    equal_task: pd.DataFrame
    """What each method still knows where it has learned a given share of the task."""
    metrics: dict[str, Any]
    """By method: the ratios before and after, the number of failed expectations, what it knows at the chosen rate."""
    pictures: list[Path]
    """before_after.png, bx_ratio.png and knowledge.png."""


def compare_methods(verified: Path, knowledge: Path, output_dir: Path, methods: Sequence[str]) -> Comparison:
    """Writes stats.csv, metrics.json, before_after.png, bx_ratio.png, knowledge.png, and the tables of `rates.py`:
    knowledge.csv, knowledge_trainings.csv, knowledge_equal_task.csv, knowledge_differences.csv.

    `verified` holds `<method>-init.json` and `<method>-trained.json`, `knowledge` `<method>.json`, which may say that
    nothing was measured; the table is then empty.
    """
    pairs = {name: _pair(verified, name) for name in methods}
    stats = pd.concat([compare_stats(*pair) for pair in pairs.values()], ignore_index=True)
    base, found = _knowledge({name: knowledge / f"{name}.json" for name in methods})
    table, equal_task = knowledge_table(base, found), equal_task_table(found)
    metrics: dict[str, Any] = {name: _metrics(pair, stats) for name, pair in pairs.items()}
    for row in table[table["chosen"].astype(bool)].dropna(axis="columns").to_dict("records"):
        known = {name: row[f"{name}_mean"] for name in MEASURES if f"{name}_mean" in row}
        metrics.setdefault(row["method"], {})["knowledge"] = known
    write_csv(output_dir / "stats.csv", stats)
    write_csv(output_dir / "knowledge.csv", table)
    write_csv(output_dir / "knowledge_trainings.csv", trainings_table(found))
    write_csv(output_dir / "knowledge_equal_task.csv", equal_task)
    write_csv(output_dir / "knowledge_differences.csv", differences_table(found))
    write_json(output_dir / "metrics.json", metrics)
    pictures = [
        draw_before_after(output_dir / "before_after.png", list(pairs.values())),
        draw_bx_ratio(output_dir / "bx_ratio.png", [trained for _, trained in pairs.values()], pairs[methods[0]][0]),
        draw_knowledge(output_dir / "knowledge.png", table),
    ]
    return Comparison(stats, table, equal_task, metrics, pictures)


def _pair(folder: Path, method: str) -> tuple[Verification, Verification]:
    return read_stats(folder / f"{method}-init.json"), read_stats(folder / f"{method}-trained.json")


def _metrics(pair: tuple[Verification, Verification], stats: pd.DataFrame) -> dict[str, Any]:
    method = pair[0].summary.method
    states = zip(("init", "trained"), pair, strict=True)
    ratios = {state: {name: getattr(found.summary, name) for name in THRESHOLDS} for state, found in states}
    return ratios | {"failed_expectations": len(failures(stats[stats["method"] == method]))}


def _knowledge(files: Mapping[str, Path]) -> tuple[Knowledge | None, dict[str, list[Training]]]:
    """The base's knowledge and the trainings of those methods whose knowledge was measured; all on one base."""
    base, found = None, dict[str, list[Training]]()
    for name, path in files.items():
        own, trainings = read_knowledge(path)
        if own is None:
            continue
        if base not in (None, own):
            raise ValueError(f"{path}: its base knows other things than that of {next(iter(found))}; train all again")
        base, found[name] = own, trainings
    return base, found
