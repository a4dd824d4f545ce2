"""Pictures of held-out scenes with predicted boxes."""

from pathlib import Path

from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from subspacelab.core.files import write_beside
from subspacelab.synthetic.grounding.evaluation import CheckpointEvaluation
from subspacelab.synthetic.grounding.scenes import Scene

SHOWN = 12
TRUE, PREDICTED = "#0072B2", "#E69F00"  # Okabe and Ito's blue and orange: told apart by all eyes


def draw_checkpoint(path: Path, evaluation: CheckpointEvaluation) -> Path:
    """The first held-out scenes with the checkpoint's predicted boxes, as a PNG."""
    found = evaluation.found
    figure = draw_boxes(evaluation.scenes[:SHOWN], found.boxes[:SHOWN], found.ious[:SHOWN])
    with write_beside(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
    return path


def draw_boxes(scenes: list[Scene], boxes: Float[Tensor, "scenes 4"], ious: Float[Tensor, " scenes"]) -> Figure:
    """Pictures with the true box (solid) and the predicted one (dashed), the question above, the IoU beside it."""
    columns = 4
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, drawn, box, iou in zip(axes, scenes, boxes.tolist(), ious.tolist(), strict=False):
        axis.imshow(drawn.image)
        for (x, y, width, height), colour, style in ((drawn.bbox, TRUE, "-"), (box, PREDICTED, "--")):
            axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="white", linewidth=3.5))
            axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2, linestyle=style))
        axis.set_title(f"{drawn.question}\nIoU {iou:.2f}", fontsize=8)
    handles = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=TRUE, linewidth=2, label="true box"),
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=PREDICTED, linewidth=2, linestyle="--", label="predicted box"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure
