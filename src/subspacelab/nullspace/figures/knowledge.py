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
        title = f"mean ± deviation of {seeds} trainings; open: other rates" if seeds > 1 else "one training of each"
        figure.legend(*panels[0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=5)
    return path


def _curve(axes: Axes, i: int, method: str, rows: pd.DataFrame, measure: str) -> None:
    is_base = method == BASE
    colour = "#000000" if is_base else [*COLOURS[:-1], GREY][(i - 1) % len(COLOURS)]
    marker = "*" if is_base else MARKERS[(i - 1) % len(MARKERS)]
    # More methods than colours: the second round has dashed lines.
    line = "--" if (i - 1) // len(COLOURS) else "-"
    x, y, chosen = rows["task_mean"], rows[f"{measure}_mean"], rows["chosen"].astype(bool)
    axes.plot(x, y, line, color=colour, marker=marker, fillstyle="none", linewidth=1)
    axes.errorbar(
        x[chosen],
        y[chosen],
        xerr=rows["task_std"][chosen],
        yerr=rows[f"{measure}_std"][chosen],
        fmt=marker,
        color=colour,
        markersize=11 if is_base else 7,
        capsize=3,
        label=drawn_name(method),
    )
