"""before_after.png: what training did to the null space, and what was learned, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from subspacelab.nullspace.stats import Verification
from subspacelab.reports.figures import COLOURS, GREY, MARKERS, log_if_positive, open_figure

Pair = tuple[Verification, Verification]


def draw_before_after(path: Path, pairs: Sequence[Pair]) -> Path:
    """Left BX_ratio, right the change of the layer's output, before (dashed) and after training, of each method.

    Both axes are logarithmic: a curve of zeros is only named.
    """
    with open_figure(path, (11, 3.8)) as figure:
        left, right = figure.subplots(1, 2)
        _panel(left, pairs, "BX_ratio")
        _panel(right, pairs, "DeltaX_ratio")
        baseline = [s.BX_ratio_random for s in pairs[0][0].stats]
        left.plot(baseline, color=GREY, linestyle=":", label="a random B")
        left.set_ylabel("null-space ratio, mean ‖Bx‖ / mean ‖x‖")
        right.set_ylabel("learned, mean ‖ΔW x‖ / mean ‖x‖")
        left.legend(ncols=2)
        right.legend(ncols=2)
    return path


def _panel(axes: Axes, pairs: Sequence[Pair], metric: str) -> None:
    values: list[float] = []
    for i, pair in enumerate(pairs):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        for found, state in zip(pair, ("before", "after"), strict=True):
            curve = [getattr(s, metric) for s in found.stats]
            line, fill = ("--", "none") if state == "before" else ("-", "full")
            label = f"{found.summary.method}, {state}" + ("" if any(curve) else ": 0")
            axes.plot(curve, line, label=label, color=colour, marker=marker, markersize=3, fillstyle=fill)
            values += curve
    log_if_positive(axes, values, plain=True)
    axes.set_xlabel("layer with an adapter, in the model's order")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
