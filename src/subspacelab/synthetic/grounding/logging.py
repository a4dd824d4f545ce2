"""What a checkpoint stage records beside the checkpoint: its figures, and a model for MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.synthetic.from_hub import REPORTS
from subspacelab.synthetic.grounding.display import print_checkpoint
from subspacelab.synthetic.grounding.evaluation import report_checkpoint

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def record_checkpoint(
    folder: Path, tracker: "Tracker", *, seed: int, num_scenes: int, before: Path | None = None
) -> None:
    """Evaluates a trained checkpoint, writes its figures and its picture, and logs them and the model.

    `before` is the checkpoint that it was continued from: the gain over it is paired, scene by scene.
    """
    from subspacelab.tracking.protocol import ModelFiles, pinned

    picture = folder / "predicted_boxes.png"
    figures = report_checkpoint(
        folder, REPORTS / f"{folder.name}.json", picture, seed=seed, num_scenes=num_scenes, before=before
    )
    print_checkpoint(folder.name, figures)
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
