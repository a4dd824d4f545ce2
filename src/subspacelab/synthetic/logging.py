"""Tracker output of a checkpoint stage: its metrics, and the checkpoint as a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.synthetic.facts.evaluation import LlmEvaluation
from subspacelab.synthetic.grounding.evaluation import CheckpointEvaluation

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def record_checkpoint(evaluation: CheckpointEvaluation, folder: Path, picture: Path, tracker: "Tracker") -> None:
    """Records a grounding checkpoint and the picture of its boxes."""
    tracker.log_artifact(picture)
    _record("grounding", "mean_iou", folder, evaluation.metrics, f"{folder.name}_iou", tracker)


def record_llm(evaluation: LlmEvaluation, folder: Path, tracker: "Tracker") -> None:
    """Records an llm checkpoint."""
    _record("facts", "recall", folder, evaluation.metrics, "llm_recall", tracker)


def _record(
    world: str, metric: str, folder: Path, metrics: Mapping[str, float], headline: str, tracker: "Tracker"
) -> None:
    """`world` is the package whose mlflow_model.py loads the checkpoint; its `metric` is the pipeline's `headline`."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    tracker.log_metrics(metrics)
    tracker.log_headline({headline: metrics[metric]})
    tracker.log_model(
        ModelFiles(
            name=folder.name,
            folder=folder,
            code=Path(__file__).with_name(world) / "mlflow_model.py",
            pip_requirements=pinned("torch", "transformers", "safetensors"),
            metrics=metrics,
            registered=world,
            headline=metric,
        )
    )
