"""knowledge.png: what each method remembers, beside what it learned, at each of its learning rates."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from subspacelab.nullspace.knowledge import BASE
from subspacelab.reports.figures import COLOURS, GREY, MARKERS, drawn_name, open_figure, say

PANELS = {"recall": "answered exactly", "recall_begun": "answer begins right"}


def draw_knowledge(path: Path, table: pd.DataFrame) -> Path:
    """Recall over accuracy on the new task, means over the seeds; a curve over the rates of each method.

    Left the facts answered exactly, right those whose answer begins right. Filled, with deviations: the rate chosen
    on validation problems.
    """
    with open_figure(path, (10, 4.6)) as figure:
        if table.empty:
            say(figure.subplots(), "knowledge was not measured")
            return path
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (measure, wording) in zip(panels, PANELS.items(), strict=True):
            for i, (method, rows) in enumerate(table.groupby("method", sort=False)):
                _curve(axes, i, str(method), rows, measure)
            axes.set(title=wording, xlabel="new task: share of unseen problems solved")
        panels[0].set_ylabel("old knowledge: share of facts")
        panels[0].set_ylim(-0.04, 1.06)
        seeds = int(table["num_seeds"].max())
        spread = f"mean ± deviation of {seeds} trainings" if seeds > 1 else "one training of each"
        title = f"{spread}; filled: the rate chosen on validation problems"
        figure.legend(*panels[0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=5)
    return path


def _curve(axes: Axes, i: int, method: str, rows: pd.DataFrame, measure: str) -> None:
    """The base (i = 0) is a black star; from the eighth method on colours come again, with other marks and dashes."""
    again, number = divmod(i - 1, len(COLOURS))
    colour = "#000000" if method == BASE else [*COLOURS[:-1], GREY][number]
    marker = "*" if method == BASE else MARKERS[(number + again) % len(MARKERS)]
    x, y, chosen = rows["task_mean"], rows[f"{measure}_mean"], rows["chosen"].astype(bool)
    size, line = 11 if method == BASE else 6, "--" if again > 0 else "-"
    label = drawn_name(method)
    axes.plot(x, y, line, color=colour, marker=marker, fillstyle="none", linewidth=1, markersize=size, label=label)
    xerr, yerr = rows["task_std"][chosen], rows[f"{measure}_std"][chosen]
    axes.errorbar(x[chosen], y[chosen], yerr, xerr, fmt=marker, color=colour, markersize=size, capsize=3)
