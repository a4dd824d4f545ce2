"""What comes of the llm's stage, beside the checkpoint: its figures for people, a model for MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.synthetic.facts.evaluation import report_llm
from subspacelab.synthetic.from_hub import REPORTS

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def record_llm(folder: Path, corpus: Path, tracker: "Tracker") -> None:
    """Asks a trained llm what it knows, writes the figures, and logs them and the model."""
    from subspacelab.tracking.protocol import ModelFiles, pinned

    figures = report_llm(folder, corpus, REPORTS / f"{folder.name}.json")
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
