"""Tracker output of a comparison and an audit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from subspacelab.rotation.aggregate import metric_columns
from subspacelab.rotation.auditing import Audit
from subspacelab.rotation.comparison import LINKS, TABLES, Comparison
from subspacelab.rotation.judgement import Judgement
from subspacelab.rotation.measuring import link_pairs, wide_column, wide_of
from subspacelab.tracking.protocol import trackable

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def track_comparison(comparison: Comparison, folder: Path, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records curves over depth, the means over all weights, the headline numbers, tables and pictures.

    `folder` is where the comparison was saved.
    """
    log_curves(comparison, tracker.log_metrics)
    measures = {name: value for name, value in _over_all_weights(comparison).items() if isinstance(value, dict)}
    means = {name: value["mean"] for name, value in measures.items() if value["mean"] is not None}
    tracker.log_metrics({f"mean/{name}": mean for name, mean in means.items()})
    tracker.log_metrics({f"std/{name}": measures[name]["std"] for name in means})
    for part in ("ratio", "z"):
        found = {name: value[part] for name, value in measures.items() if value.get(part) is not None}
        tracker.log_metrics({f"{part}/{name}": value for name, value in found.items()})
    tracker.log_headline(comparison.headline)
    tracker.log_table(comparison.layers, "layers")
    tracker.log_table(comparison.modules, "modules")
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    for file in (*TABLES, LINKS):
        if (folder / file).is_file():
            tracker.log_artifact(folder / file, "tables")


def track_audit(audit: Audit, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the means over the weights, the table and the pictures."""
    tracker.log_metrics({f"mean/{name}": mean for name, mean in audit.metrics["means"].items()})
    tracker.log_table(audit.layers, "layers")
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")


def track_judgement(judgement: Judgement, picture: Path, tracker: "Tracker") -> None:
    """Records the score of each checkpoint, the table and the picture."""
    tracker.log_table(judgement.table, "judged")
    tracker.log_artifact(picture, "pictures")


def _over_all_weights(comparison: Comparison) -> dict[str, Any]:
    """Measure -> its moments; for links with the pair in the name, as for three checkpoints."""
    if comparison.is_chain_of_three:
        return dict(comparison.metrics["all"])
    links = zip(link_pairs(len(comparison.names)), comparison.metrics["links"], strict=True)
    return {wide_column(name, pair): value for pair, link in links for name, value in link["all"].items()}


def log_curves(comparison: Comparison, log: Callable[[Mapping[str, float], int], None]) -> None:
    """Passes `<group>/<metric>` to `log(metrics, step)`, with trackable group names; the step is the layer index."""
    curves = comparison.curves
    if curves.empty:
        return
    if not comparison.is_chain_of_three:
        curves = wide_of(curves, ["module", "layer"])
    metrics = metric_columns(curves)
    for layer in sorted(curves["layer"].unique()):
        rows = curves[curves["layer"] == layer]
        values = {
            f"{trackable(group).replace('/', '_')}/{metric}": float(row[metric])
            for group, row in rows.set_index("module").iterrows()
            for metric in metrics
            if pd.notna(row[metric])
        }
        log(values, int(layer))
