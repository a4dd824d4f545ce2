"""What comes of a checkpoint stage, beside the checkpoint: figures and a picture for people, a model for MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from subspacelab.demo.from_hub import REPORTS
from subspacelab.demo.report import report_checkpoint
from subspacelab.reports.tables import print_table

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
            code=Path(__file__).with_name("served.py"),
            pip_requirements=pinned("torch", "transformers", "safetensors"),
            metrics=figures,
        )
    )


def print_checkpoint(name: str, figures: Mapping[str, float], console: Console | None = None) -> None:
    """Prints the mean IoU of each kind of box and its gain over the checkpoint before, and what the errors are over."""
    console = console or Console()
    kinds = {
        "greedy": ("mean_iou", "gain"),
        "sampled": ("sampled_iou", "sampled_gain"),
        "best constant": ("constant_iou", ""),
    }
    rows = [[kind, *_shown(figures, iou), *_shown(figures, gain, "+")] for kind, (iou, gain) in kinds.items()]
    title = f"{name} on {figures['num_scenes']} scenes that it never saw"
    print_table(title, ["box", "mean IoU", "+-", "gain", "+-"], rows, console=console)
    console.print(
        "+-: standard error over the scenes, of this one training; another training (another seed or CPU) moves more.",
        markup=False,
    )


def _shown(figures: Mapping[str, float], key: str, sign: str = "") -> list[str]:
    return [f"{figures[key]:{sign}.3f}", f"{figures[f'{key}_se']:.3f}"] if key in figures else ["-", "-"]
