"""The picture of a study of forgetting: what is kept over what is learned, a curve per method."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspacelab.nullspace.forgetting.curve import Curve
from subspacelab.nullspace.forgetting.results import Forgetting
from subspacelab.plotting.figures import COLOURS, GREY, MARKERS, drawn_name, open_figure

PANELS = {
    "recall_first": "old knowledge: right answer still the likeliest",
    "recall": "old knowledge: share answered exactly",
    "delta_ce": "held-out English: cross-entropy over the base's, nats a token",
    "kl_new": "KL(base ‖ model) on the new task's answers, nats a token",
}


def draw_pareto(path: Path | None, found: Forgetting) -> Figure:
    """Four panels over the task score: recall by rank and to the letter, cross-entropy on English, KL on the new task.

    A curve goes from the base (star) over the scored moments of the training, means over the seeds at the chosen
    rate; its end is filled. The vertical line is the level at which methods are compared.
    """
    chosen = found.chosen
    with open_figure(path, (10, 8)) as figure:
        panels = figure.subplots(2, 2, sharex=True).flat
        for axes, (measure, wording) in zip(panels, PANELS.items(), strict=True):
            for i, (method, rate) in enumerate(chosen.items()):
                curves = [c for c in found.curves if (c.method, c.rate) == (method, rate)]
                _draw_curve(axes, i, found, curves, measure)
            axes.plot(found.base.task, getattr(found.base, measure), "*", color="#000000", markersize=11, label="base")
            axes.axvline(found.level, color=GREY, linestyle=":", linewidth=1)
            axes.set_title(wording)
            if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]
                axes.set_xlabel("new task: share of unseen problems solved")
        seeds = len({curve.seed for curve in found.curves})
        spread = f"means of {seeds} trainings" if seeds > 1 else "one training of each"
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            title=f"{spread}, scored at 1/8, 1/4, 1/2 and the end (filled)",
            loc="outside lower center",
            ncols=5,
        )
    return figure


def _draw_curve(axes: Axes, i: int, found: Forgetting, curves: Sequence[Curve], measure: str) -> None:
    """From the eighth method on colours come again, with other marks and dashes."""
    again, number = divmod(i, len(COLOURS) - 1)
    colour, marker, line = COLOURS[number], MARKERS[(number + again) % len(MARKERS)], "--" if again else "-"
    paths = np.array([found.path(curve, measure) for curve in curves])  # [seeds points 2]
    x, y = paths.mean(0).T
    label = drawn_name(curves[0].method)
    axes.plot(x, y, line, color=colour, marker=marker, linewidth=1.2, markersize=5, fillstyle="none", label=label)
    axes.plot(x[-1:], y[-1:], marker, color=colour, markersize=5)
    if len(paths) > 1:
        dx, dy = paths[:, 1:].std(0, ddof=1).T
        axes.errorbar(x[1:], y[1:], dy, dx, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.6)
