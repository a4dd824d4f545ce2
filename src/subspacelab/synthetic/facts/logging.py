"""What the llm's stage gives to the tracker."""

from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.synthetic.facts.evaluation import LlmEvaluation

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def record_llm(evaluation: LlmEvaluation, folder: Path, tracker: "Tracker") -> None:
    """Logs an evaluation, and the checkpoint in `folder` as a model."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    figures = evaluation.metrics
    tracker.log_metrics(figures)
    tracker.log_headline({"llm_recall": figures["recall"]})
    tracker.log_model(
        ModelFiles(
            name=folder.name,
            folder=folder,
            code=Path(__file__).with_name("mlflow_model.py"),
            pip_requirements=pinned("torch", "transformers", "safetensors"),
            metrics=figures,
        )
    )
