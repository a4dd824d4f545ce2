"""What the commands of lowrank give to the tracker."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.lowrank.comparison import Comparison
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.state import BEST_MODEL
from subspacelab.lowrank.training import TrainingResult
from subspacelab.lowrank.visualization import Views

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def track_comparison(comparison: Comparison, folder: Path, picture: Path, tracker: "Tracker") -> None:
    """Records mean and deviation of every measure, the headline, the table and the picture.

    Also the cost of a picture, in operations and in milliseconds of this run, and what training changed. `folder` is
    where the comparison was saved.
    """
    metrics = comparison.metrics
    for name, measures in metrics["methods"].items():
        key = name.replace(" ", "_")
        tracker.log_metrics({f"{measure}/{key}": value["mean"] for measure, value in measures.items()})
        tracker.log_metrics({f"{measure}_std/{key}": value["std"] for measure, value in measures.items()})
        cost = {"flops": metrics["flops_per_picture"][name], "milliseconds": comparison.milliseconds[name]}
        training = metrics["training"].get(name, {})
        tracker.log_metrics({f"{measure}/{key}": value for measure, value in (cost | training).items()})
    tracker.log_headline(comparison.headline)
    tracker.log_table(comparison.images, "comparison")
    tracker.log_artifact(picture, "pictures")
    for file in ("details.json", "metrics.json"):
        if (folder / file).is_file():
            tracker.log_artifact(folder / file, "tables")


def track_views(views: Views, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records the pictures, and the rank curves with the rank as the step."""
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    for name, curve in views.curve.items():
        for rank, cosine in curve.items():
            tracker.log_metrics({f"rank_curve/{name.replace(' ', '_')}": cosine}, int(rank))


def record_training(result: TrainingResult, features: Features, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Logs the best epoch's metrics, pictures and the best model (the curves were logged epoch by epoch)."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    arch = result.folder.name
    tracker.log_metrics(result.metrics, result.progress.best_epoch)
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
    tokens, dim = features.meta.tokens, features.meta.dim
    tracker.log_model(
        ModelFiles(
            name=f"lowrank_{arch}",
            folder=result.folder,
            files=[f"{BEST_MODEL}.safetensors", f"{BEST_MODEL}.json"],
            code=Path(__file__).with_name("mlflow_model.py"),
            pip_requirements=pinned("torch", "safetensors", "numpy"),
            metrics=result.metrics,
            step=result.progress.best_epoch,
            tensors=((tokens, dim), (tokens, dim)),
        )
    )
