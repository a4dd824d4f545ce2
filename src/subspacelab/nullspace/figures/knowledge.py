"""knowledge.png: what each method remembers, beside what it learned."""

from pathlib import Path

import pandas as pd

from subspacelab.reports.figures import COLOURS, MARKERS, drawn_name, open_figure, say


def draw_knowledge(path: Path, table: pd.DataFrame) -> Path:
    """Recall of old facts over accuracy on the new task, mean +- standard deviation over seeds; the base first."""
    with open_figure(path, (6, 4.2)) as figure:
        axes = figure.subplots()
        if table.empty:
            say(axes, "knowledge was not measured")
            return path
        for i, row in enumerate(table.to_dict("records")):
            is_base = i == 0
            axes.errorbar(
                row["task_mean"],
                row["recall_mean"],
                xerr=row["task_std"],
                yerr=row["recall_std"],
                fmt="*" if is_base else MARKERS[(i - 1) % len(MARKERS)],
                color="#000000" if is_base else COLOURS[(i - 1) % (len(COLOURS) - 1)],
                markersize=11 if is_base else 7,
                capsize=3,
                label=drawn_name(row["method"]),
            )
        axes.set(xlabel="new task: share of unseen problems solved", ylabel="old knowledge: share of facts recalled")
        axes.set_xlim(-0.03, max(1.06 * float((table["task_mean"] + table["task_std"]).max()), 0.2))
        axes.set_ylim(-0.04, 1.06)
        seeds = int(table["num_seeds"].max())
        axes.legend(title=f"mean ± deviation, {seeds} seed{'s' if seeds > 1 else ''}", loc="best")
    return path
