"""What comes of an analysis: JSON, pictures, a table for several models, and what the tracker keeps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.files import write_beside
from subspacelab.norms.compare import comparison_table
from subspacelab.norms.depth import depth_curves
from subspacelab.norms.pictures.comparison import draw_comparison
from subspacelab.norms.pictures.depth import draw_norm_scales
from subspacelab.norms.pictures.embeddings import draw_embedding_norms
from subspacelab.norms.results import Analysis, Embedding

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def draw_pictures(folder: Path, analysis: Analysis) -> tuple[Path, ...]:
    """embedding_norms.png and norm_scales.png in `folder`; what else is there stays."""
    return (
        draw_embedding_norms(folder / "embedding_norms.png", analysis),
        draw_norm_scales(folder / "norm_scales.png", analysis),
    )


def write_comparison(folder: Path, analyses: Sequence[Analysis]) -> tuple[Path, Path]:
    """comparison.csv and comparison.png in `folder`."""
    table = folder / "comparison.csv"
    with write_beside(table) as partial:
        comparison_table(analyses).to_csv(partial, index=False)
    return table, draw_comparison(folder / "comparison.png", analyses)


def track_analysis(analysis: Analysis, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records every statistic as a metric, abs_mean of every kind of norm over the block as a curve, the pictures."""
    detected = analysis.survey.detected
    tracker.set_tags({"model_type": detected.model_type, "warnings": len(analysis.warnings)})
    tracker.log_metrics(flat_metrics(analysis))
    for curve in depth_curves(analysis.norms):
        for block, abs_mean in zip(curve.blocks, curve.abs_means, strict=True):
            tracker.log_metrics({curve.metric: abs_mean}, block)
    tracker.log_headline(
        {f"{analysis.name}_{e.layer.kind.replace(' ', '_')}_norm": e.to_json()["norm_mean"] for e in _first(analysis)}
    )
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


def flat_metrics(analysis: Analysis) -> dict[str, float]:
    """`<statistic>/<layer>` -> value of every number in the report that is not a list, and the two totals."""
    report = analysis.to_json()
    totals = {key: float(report[key]) for key in ("total_embedding_layers", "total_norm_layers")}
    layers = {**report["embedding_layers"], **report["norm_layers"]}
    flat = {f"{key}/{name}": value for name, entry in layers.items() for key, value in entry.items()}
    biases = {
        f"bias_{key}/{name}": value
        for name, entry in report["norm_layers"].items()
        for key, value in (entry["bias"] or {}).items()
    }
    numbers = (flat | biases).items()
    return totals | {key: float(value) for key, value in numbers if isinstance(value, int | float)}


def _first(analysis: Analysis) -> list[Embedding]:
    """The first embedding of each kind."""
    kinds: dict[str, Embedding] = {}
    for embedding in analysis.embeddings:
        kinds.setdefault(embedding.layer.kind, embedding)
    return list(kinds.values())
