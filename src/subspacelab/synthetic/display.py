"""Terminal output of a checkpoint stage."""

from collections.abc import Mapping

from rich.console import Console

from subspacelab.plotting.terminal import print_table
from subspacelab.synthetic.grounding.evaluation import CheckpointEvaluation


def print_checkpoint(evaluation: CheckpointEvaluation, console: Console | None = None) -> None:
    """Prints the mean IoU of each kind of box, its gain over the checkpoint before, and what the errors refer to."""
    console, figures = console or Console(), evaluation.metrics
    kinds = {
        "greedy": ("mean_iou", "gain"),
        "sampled": ("sampled_iou", "sampled_gain"),
        "best constant": ("constant_iou", ""),
    }
    rows = [[kind, *_shown(figures, iou), *_shown(figures, gain, "+")] for kind, (iou, gain) in kinds.items()]
    title = f"{evaluation.name} on {figures['num_scenes']} scenes that it never saw"
    print_table(title, ["box", "mean IoU", "+-", "gain", "+-"], rows, console=console)
    console.print(
        "+-: standard error over the scenes, of this one training; another training (another seed or CPU) moves more.",
        markup=False,
    )


def _shown(figures: Mapping[str, float], key: str, sign: str = "") -> list[str]:
    return [f"{figures[key]:{sign}.3f}", f"{figures[f'{key}_se']:.3f}"] if key in figures else ["-", "-"]
