"""Tracker output of an analysis, and the table of several models."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.core.files import write_csv
from subspacelab.norms.comparison import comparison_table, depth_curves
from subspacelab.norms.plots import COMPARISON, draw_comparison
from subspacelab.norms.results import Analysis, Massive
from subspacelab.tracking.protocol import trackable

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def write_comparison(folder: Path, analyses: Sequence[Analysis]) -> tuple[Path, Path]:
    """Writes the `COMPARISON` files to `folder`."""
    table, picture = (folder / name for name in COMPARISON)
    write_csv(table, comparison_table(analyses))
    draw_comparison(picture, analyses)
    return table, picture


def track_analysis(analysis: Analysis, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records every statistic as a metric, abs_mean of each kind of norm layer as a curve over blocks, and pictures."""
    tracker.set_tags({"model_type": analysis.model_type, "warnings": len(analysis.warnings)})
    tracker.log_metrics(flat_metrics(analysis))
    for curve in depth_curves(analysis.norm_layers):
        for block, abs_mean in zip(curve.blocks, curve.abs_means, strict=True):
            tracker.log_metrics({trackable(curve.metric): abs_mean}, block)
    first = {e.layer.kind: e for e in reversed(analysis.embedding_layers)}
    tracker.log_metrics(
        {trackable(f"{analysis.name}_{kind}_norm"): float(e.vectors.norms.mean()) for kind, e in first.items()}
    )
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


def track_massive(found: Massive, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the headline numbers, the largest ratio and the median as curves over layers, tables and pictures."""
    tracker.set_tags({"summary": found.summary})
    numbers = {key: float(value) for key, value in found.metrics.items() if isinstance(value, int | float)}
    ranks = {f"rank_{norm}_{kind}": v for norm, of in found.metrics["scale_ranks"].items() for kind, v in of.items()}
    numbers |= ranks | {"num_massive_dims": float(len(found.metrics["massive_dims"]))}
    tracker.log_metrics({trackable(f"massive/{name}"): value for name, value in numbers.items()})
    for row in found.layers.to_dict("records"):
        tracker.log_metrics({"massive/ratio": row["ratio"], "massive/median": row["median"]}, row["layer"])
    for name in ("layers", "dims", "scales"):
        tracker.log_table(getattr(found, name), name)
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


def flat_metrics(analysis: Analysis) -> dict[str, float]:
    """`<statistic>/<layer>` -> value for every number in the report outside lists, and the two totals."""
    report = analysis.to_json()
    flat = {key: report[key] for key in ("total_embedding_layers", "total_norm_layers")}
    for layer, entry in (report["embedding_layers"] | report["norm_layers"]).items():
        biases = {f"bias_{key}": value for key, value in (entry.get("bias") or {}).items()}
        flat |= {trackable(f"{key}/{layer}"): value for key, value in (entry | biases).items() if key != "block"}
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}
