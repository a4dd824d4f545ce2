"""All methods of a study side by side: did each keep its promise, and what does each know now?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from subspacelab.files import write_json
from subspacelab.nullspace.compare_stats import compare_stats, failures, write_table
from subspacelab.nullspace.figures.before_after import draw_before_after
from subspacelab.nullspace.figures.knowledge import draw_knowledge
from subspacelab.nullspace.figures.layers import draw_bx_ratio
from subspacelab.nullspace.knowledge import MEASURES, knowledge_table
from subspacelab.nullspace.outcome import read_knowledge
from subspacelab.nullspace.stats import Verification, read_stats
from subspacelab.nullspace.verdicts import THRESHOLDS


@dataclass(frozen=True)
class Comparison:
    """What was found and written."""

    stats: pd.DataFrame
    """Before and after of every layer of every method, with verdicts."""
    knowledge: pd.DataFrame | None
    """One row per method, the base first; None where knowledge was not measured."""
    metrics: dict[str, Any]
    """By method: the ratios before and after, the number of failed expectations, what it knows."""
    pictures: list[Path]
    """before_after.png, bx_ratio.png, and knowledge.png if there is any."""


def verified_methods(folder: Path, methods: list[str]) -> list[str]:
    """The methods whose verifications `<method>-init.json` and `-trained.json` lie in `folder`; all, or those named.

    ValueError when there is none, or one that was named is missing.
    """
    there = {p.name.removesuffix("-trained.json") for p in folder.glob("*-trained.json")}
    there &= {p.name.removesuffix("-init.json") for p in folder.glob("*-init.json")}
    missing = sorted(set(methods) - there)
    if missing or not there:
        raise ValueError(f"{folder}: {missing[0] if missing else 'no method'} was not verified before and after; do so")
    return methods or sorted(there)


def compare_methods(verified: Path, knowledge: Path, output_dir: Path, methods: list[str]) -> Comparison:
    """Writes stats.csv, metrics.json, before_after.png, bx_ratio.png, knowledge.csv and knowledge.png.

    `verified` holds `<method>-init.json` and `<method>-trained.json`, `knowledge` may hold `<method>.json`.
    """
    pairs = {name: _pair(verified, name) for name in verified_methods(verified, methods)}
    stats = pd.concat([compare_stats(*pair) for pair in pairs.values()], ignore_index=True)
    metrics = {name: _metrics(pair, stats) for name, pair in pairs.items()}
    write_table(output_dir / "stats.csv", stats)
    pictures = [
        draw_before_after(output_dir / "before_after.png", list(pairs.values())),
        draw_bx_ratio(output_dir / "bx_ratio.png", [trained for _, trained in pairs.values()]),
    ]
    known = {name: path for name in pairs if (path := knowledge / f"{name}.json").is_file()}
    table = _knowledge(known) if known else None
    if table is not None:
        write_table(output_dir / "knowledge.csv", table)
        pictures.append(draw_knowledge(output_dir / "knowledge.png", table))
        for row in table.to_dict("records"):
            metrics.setdefault(row["method"], {})["knowledge"] = {m: row[f"{m}_mean"] for m in MEASURES}
    write_json(output_dir / "metrics.json", metrics)
    return Comparison(stats, table, metrics, pictures)


def _pair(folder: Path, method: str) -> tuple[Verification, Verification]:
    return read_stats(folder / f"{method}-init.json"), read_stats(folder / f"{method}-trained.json")


def _metrics(pair: tuple[Verification, Verification], stats: pd.DataFrame) -> dict[str, Any]:
    method = pair[0].summary.method
    states = zip(("init", "trained"), pair, strict=True)
    ratios = {state: {name: getattr(found.summary, name) for name in THRESHOLDS} for state, found in states}
    return ratios | {"failed_expectations": len(failures(stats[stats["method"] == method]))}


def _knowledge(files: Mapping[str, Path]) -> pd.DataFrame:
    read = {name: read_knowledge(path) for name, path in files.items()}
    base = next(iter(read.values()))[0]
    for name, (other, _) in read.items():
        if other != base:
            raise ValueError(
                f"{files[name]}: its base knows other things than that of {next(iter(files))}; train again"
            )
    return knowledge_table(base, {name: list(found.values()) for name, (_, found) in read.items()})
