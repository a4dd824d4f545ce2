"""What comes of a training beside the weights: pictures for people, a model for the tracker."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from subspacelab.lowrank.batches import batches_of, read_batches
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.figures.training import (
    draw_error_heatmap,
    draw_loss_comparison,
    draw_loss_curves,
    draw_row_norms,
)
from subspacelab.lowrank.state import BEST_MODEL, load_model
from subspacelab.lowrank.train import TrainingResult

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker

BATCH = 16


@torch.no_grad()
def draw_training(result: TrainingResult, features: Features) -> list[Path]:
    """Curves, and what the best model leaves of the validation pictures, as four pictures in the results folder."""
    trained = load_model(result.folder)
    rows = features.split(trained.seed)["validation"]
    spec = trained.model.spec
    errors, norms = torch.zeros(spec.tokens), torch.zeros(spec.rank)
    for x in read_batches(features, batches_of(rows, BATCH), spec.normalisation, torch.device("cpu")):
        a, b, approximation = trained.model(x)
        errors += ((approximation - x).norm(dim=2) / x.norm(dim=2)).sum(0)
        norms += (a.norm(dim=1) * b.norm(dim=2)).sum(0)
    history, best = result.progress.history, result.progress.best_epoch
    folder, rank = result.folder, result.rank
    return [
        draw_loss_comparison(folder / "train_val_loss_comparison.png", history, best),
        draw_loss_curves(folder / "loss_curves.png", history),
        draw_error_heatmap(folder / "error_heatmap.png", (errors / len(rows)).numpy(), features.meta.side, rank=rank),
        draw_row_norms(folder / "B_row_norms.png", (norms / len(rows)).tolist(), rank=rank),
    ]


def record_training(result: TrainingResult, features: Features, tracker: "Tracker") -> None:
    """Logs headline metrics, pictures and the best model (the curves were logged epoch by epoch)."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    arch = result.folder.name
    tracker.log_metrics(result.metrics, result.progress.best_epoch)
    tracker.log_headline({f"{arch}_val_cosine": result.metrics["val_cosine"]})
    for picture in draw_training(result, features):
        tracker.log_artifact(picture, "pictures")
    tokens, dim = features.meta.tokens, features.meta.dim
    tracker.log_model(
        ModelFiles(
            name=f"lowrank_{arch}",
            folder=result.folder,
            files=[f"{BEST_MODEL}.safetensors", f"{BEST_MODEL}.json"],
            code=Path(__file__).with_name("served.py"),
            pip_requirements=pinned("torch", "safetensors", "numpy"),
            metrics=result.metrics,
            step=result.progress.best_epoch,
            tensors=((tokens, dim), (tokens, dim)),
        )
    )
