"""What the commands of room 2 tell the person at the terminal, and the tracker."""

from typing import TYPE_CHECKING

from rich.console import Console

from subspacelab.errors import printable
from subspacelab.lowrank.compare import Comparison
from subspacelab.lowrank.features import FeatureMeta
from subspacelab.lowrank.train import TrainingResult
from subspacelab.lowrank.visualize import Views
from subspacelab.reports.tables import print_table

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def print_cache(meta: FeatureMeta, console: Console | None = None) -> None:
    """Prints what is in a cache, and which pictures are not."""
    console = console or Console()
    shape = f"[{meta.tokens}, {meta.dim}] {meta.dtype}"
    print_table(
        "Vision features",
        ["model", "pictures", "each", "unreadable"],
        [[meta.model, str(meta.count), shape, str(len(meta.unreadable))]],
        console=console,
    )
    for name in meta.unreadable:
        console.print(f"left out, cannot be read: {printable(name)}", markup=False)


def print_training(result: TrainingResult, console: Console | None = None) -> None:
    """Prints the best epoch and where it lies."""
    best = result.progress.history[result.progress.best_epoch - 1]
    row = [result.folder.name, str(result.progress.best_epoch), str(result.progress.epoch)]
    row += [f"{best['val_mse']:.5f}", f"{best['val_cosine']:.4f}"]
    print_table(
        f"Trained in {result.folder}",
        ["arch", "best epoch", "epochs", "validation MSE", "cosine"],
        [row],
        console=console,
    )


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the measures of each method, mean and standard deviation over the test pictures."""
    metrics = comparison.metrics
    rows = []
    for name, measures in metrics["methods"].items():
        cosine = measures["cosine"]
        rest = [measures[m]["mean"] for m in ("mse", "relative_error", "explained_variance", "share_of_svd")]
        rows.append([name, f"{cosine['mean']:.4f}", f"{cosine['std']:.4f}", *(f"{value:.4f}" for value in rest)])
    print_table(
        f"Rank {metrics['rank']}, {metrics['num_images']} test pictures, normalisation {metrics['normalisation']}",
        ["method", "cosine", "+-", "MSE", "error", "explained", "of SVD"],
        rows,
        console=console,
    )


def track_comparison(comparison: Comparison, tracker: "Tracker") -> None:
    """Records mean and deviation of every measure, the cosines as the headline, the table and the picture."""
    for name, measures in comparison.metrics["methods"].items():
        key = name.replace(" ", "_")
        tracker.log_headline({f"cosine_{key}": measures["cosine"]["mean"]})
        tracker.log_metrics({f"{measure}/{key}": value["mean"] for measure, value in measures.items()})
        tracker.log_metrics({f"{measure}_std/{key}": value["std"] for measure, value in measures.items()})
    tracker.log_table(comparison.images, "comparison")
    tracker.log_artifact(comparison.picture, "pictures")
    tracker.log_artifact(comparison.output_dir / "metrics.json", "tables")


def track_views(views: Views, tracker: "Tracker") -> None:
    """Records the pictures, and the rank curves with the rank as the step."""
    for picture in views.pictures:
        tracker.log_artifact(picture, "pictures")
    for name, curve in views.curve.items():
        for rank, cosine in curve.items():
            tracker.log_metrics({f"rank_curve/{name.replace(' ', '_')}": cosine}, int(rank))
