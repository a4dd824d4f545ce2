"""The page's section on norms: lengths of embedding vectors, scales of norm layers."""

from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.report.figures import Line, lines, whole_numbers
from subspacelab.report.page import Figure, Headline, Section, Table
from subspacelab.report.results import Results

FOLDER = "reports/norms"
QUESTION = "How long are the embedding vectors, and what are the scales of the norm layers over depth?"
STAGES = ("analyze_norms", "compare_norms")
EMBEDDING = (
    "checkpoint",
    "weight",
    "kind",
    "vocab_size",
    "embedding_dim",
    "norm_mean",
    "norm_std",
    "norm_min",
    "norm_max",
    "padding_rows",
)
NORM = (
    "checkpoint",
    "weight",
    "type",
    "tower",
    "block",
    "abs_mean",
    "mean",
    "std",
    "min",
    "max",
    "param_count",
    "warning",
)


class Report(BaseModel):
    """The keys of a checkpoint's report that this section reads."""

    embedding_layers: dict[str, dict[str, Any]] = {}
    norm_layers: dict[str, dict[str, Any]] = {}


def section(results: Results) -> Section:
    """The section on norms, from the files that exist."""
    metrics = results.metrics(FOLDER)
    scales = results.table(f"{FOLDER}/scales.csv", text=("model", "module"), numbers=("block", "abs_mean"))
    paths = [path for path in results.find(f"{FOLDER}/*.json") if not path.endswith("/metrics.json")]
    reports = {path.rpartition("/")[2].removesuffix(".json"): results.json(path, Report) or Report() for path in paths}
    blocks: list[Figure | Table] = []
    if scales is not None and len(scales):
        blocks.append(_scales(scales))
    for title, key, main in (("Embeddings", "embedding_layers", EMBEDDING), ("Norm layers", "norm_layers", NORM)):
        rows = [
            {"checkpoint": c, "weight": w, **_flat(v)} for c, r in reports.items() for w, v in getattr(r, key).items()
        ]
        if rows:
            blocks.append(Table(title, pd.DataFrame(rows), main, folded=key == "norm_layers"))
    if extremes := _extremes(reports):
        blocks.append(extremes)
    return Section("norms", QUESTION, _sentences(metrics), _headlines(metrics), blocks)


def _tokens(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removesuffix("_token_norm"): value for name, value in metrics.items() if name.endswith("_token_norm")}


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    return [
        Headline(f"mean norm of the token embedding, {name}", f"{value:.4f}", "", f"{name}_token_norm")
        for name, value in _tokens(metrics).items()
    ]


def _sentences(metrics: dict[str, float]) -> list[str]:
    found = list(_tokens(metrics).items())
    if len(found) < 2:
        return []
    (first, before), (last, after) = found[0], found[-1]
    change = f"from {before:.4f} in {first} to {after:.4f} in {last}" + (
        f" ({after / before - 1:+.2%})" if before else ""
    )
    return [f"The mean length of the token embedding's vectors goes {change}."]


def _scales(scales: pd.DataFrame) -> Figure:
    drawn = []
    for module, rows in scales.groupby("module", sort=False):
        model = rows["model"].iloc[0]
        name = str(module) if str(module).startswith(model) else f"{model} {module}"
        drawn.append(Line(name, rows["block"].tolist(), rows["abs_mean"].tolist(), model))
    return Figure(
        "norms-scales",
        "Scales of the norm layers over depth",
        "Mean absolute scale. A colour for each checkpoint; hovering names the layer.",
        lines(drawn, "block", "mean |scale|", **whole_numbers(scales["block"].tolist())),
        grouped=True,
    )


def _extremes(reports: dict[str, Report]) -> Table | None:
    """The shortest and longest vectors of every embedding."""
    rows = [
        {"checkpoint": name, "weight": weight, "which": which, **_flat(entry)}
        for name, report in reports.items()
        for weight, values in report.embedding_layers.items()
        for which in ("smallest", "largest")
        for entry in _mappings(values.get(which))
    ]
    return Table("Shortest and longest embedding vectors", pd.DataFrame(rows), folded=True) if rows else None


def _mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list; empty for anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Plain values, shapes as text, one level of mappings; lists of tokens have their own table."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key} {inner}": each for inner, each in value.items() if not isinstance(each, dict | list)}
        elif key.endswith("shape") and isinstance(value, list):
            found[key] = " x ".join(map(str, value))
        elif not isinstance(value, list):
            found[key] = value
    return found
