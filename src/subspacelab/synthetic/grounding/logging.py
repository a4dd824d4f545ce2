"""What a checkpoint stage gives to the tracker."""

from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.synthetic.grounding.evaluation import CheckpointEvaluation

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def record_checkpoint(evaluation: CheckpointEvaluation, folder: Path, picture: Path, tracker: "Tracker") -> None:
    """Logs an evaluation, its picture, and the checkpoint in `folder` as a model."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    figures = evaluation.metrics
    tracker.log_metrics(figures)
    tracker.log_headline({f"{folder.name}_iou": figures["mean_iou"]})
    tracker.log_artifact(picture)
    tracker.log_model(
        ModelFiles(
            name=folder.name,
            folder=folder,
            code=Path(__file__).with_name("mlflow_model.py"),
            pip_requirements=pinned("torch", "transformers", "safetensors"),
            metrics=figures,
        )
    )
