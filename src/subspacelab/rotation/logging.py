"""What a comparison gives to the tracker."""

from typing import TYPE_CHECKING

from subspacelab.rotation.compare import Comparison
from subspacelab.rotation.display import HEADLINE

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def track_comparison(comparison: Comparison, tracker: "Tracker") -> None:
    """Records the means over all weights (a few of them as the headline), the tables and the pictures."""
    measures = {name: value for name, value in comparison.metrics["all"].items() if isinstance(value, dict)}
    means = {name: value["mean"] for name, value in measures.items() if value["mean"] is not None}
    tracker.log_metrics({f"mean/{name}": mean for name, mean in means.items()})
    tracker.log_metrics({f"std/{name}": measures[name]["std"] for name in means})
    for part in ("ratio", "z"):
        found = {name: value[part] for name, value in measures.items() if value.get(part) is not None}
        tracker.log_metrics({f"{part}/{name}": value for name, value in found.items()})
    tracker.log_headline({name: means[name] for name in HEADLINE if name in means})
    tracker.log_table(comparison.layers, "layers")
    tracker.log_table(comparison.modules, "modules")
    for picture in comparison.pictures:
        tracker.log_artifact(picture, "pictures")
    for file in ("layers.csv", "modules.csv", "curves.csv", "metrics.json"):
        tracker.log_artifact(comparison.output_dir / file, "tables")
