"""before_after.png: what training did to the null space, and what was learned, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from subspacelab.nullspace.stats import Verification
from subspacelab.reports.figures import GREY, colour_and_marker, count_along, drawn_name, log_if_positive, open_figure

Pair = tuple[Verification, Verification]

NOTHING = 1e-6  # a change of the weights that is only their rounding


def draw_before_after(path: Path, pairs: Sequence[Pair]) -> Path:
    """Left BX_ratio, right the change of the layer's output, before (dashed) and after training, of each method."""
    with open_figure(path, (11, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        _panel(left, pairs, "BX_ratio")
        _panel(right, pairs, "DeltaX_ratio")
        left.plot([s.BX_ratio_random for s in pairs[0][0].stats], color=GREY, linestyle=":")
        left.set_ylabel("null-space ratio ‖BX‖ / ‖X‖")
        right.set_ylabel("learned, mean ‖ΔW x‖ / mean ‖x‖")
        key = [
            Line2D([], [], color=GREY, linestyle=":", label="a random B"),
            Line2D([], [], color="#000000", linestyle="--", label="before (none where it is 0)"),
            Line2D([], [], color="#000000", linestyle="-", label="after"),
        ]
        figure.legend(handles=left.get_legend_handles_labels()[0] + key, loc="outside lower center", ncols=5)
    return path


def _panel(axes: Axes, pairs: Sequence[Pair], metric: str) -> None:
    values: list[float] = []
    for i, (before, after) in enumerate(pairs):
        colour, marker = colour_and_marker(i)
        for found, line in ((before, "--"), (after, "-")):
            curve = [getattr(s, metric) for s in found.stats]
            if max(curve) > NOTHING:
                label = drawn_name(found.summary.method) if found is after else None
                fill = "full" if found is after else "none"
                axes.plot(curve, line, label=label, color=colour, marker=marker, markersize=3, fillstyle=fill)
                values += curve
    log_if_positive(axes, values, plain=True)
    axes.set_xlabel("layer with an adapter, in the model's order")
    count_along(axes)
