"""Pictures of what approximations are worth: IoU over the rank, and bytes per picture against cosine and IoU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from subspacelab.lowrank.comparison import Comparison
from subspacelab.lowrank.plots import COMPARISON, colour_of, draw_comparison, look_of
from subspacelab.lowrank.storage import COMPUTED, FORMATS, X
from subspacelab.plotting.figures import GREY, MARKERS, open_figure, say

HIGHEST = 0.9999
"""A cosine that is drawn; what is nearer stands there too."""
COSINE_TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
MARKER_OF: dict[object, str] = dict(zip(FORMATS, MARKERS, strict=False))
NETWORK_MARKERS = ("*", "s", "^", "D", "v")
"""Of methods that have one rank."""
X_COLOUR = "#b00020"


def draw_task(path: Path | None, comparison: Comparison) -> Figure:
    """Cosine and IoU over the rank, as computed; methods of one rank are points.

    Bars: standard error of the paired difference to X itself, the dotted line.
    """
    table = comparison.storage[comparison.storage["format"] == COMPUTED]
    with open_figure(path, (11, 4)) as figure:
        left, right = figure.subplots(1, 2)
        _draw_over_rank(left, table, "cosine", None)
        left.set_ylabel("cosine of X and its approximation")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        if comparison.metrics["task"]:
            _draw_over_rank(right, table, "task_iou", "task_change_se")
            right.set_ylabel("IoU of the box found by the approximation")
        else:
            say(right, "not judged: give a checkpoint as judge")
    return figure


def _draw_over_rank(axes: Axes, table: pd.DataFrame, measure: str, error: str | None) -> None:
    full, others = table[table["method"] == X], table[table["method"] != X]
    singles = 0
    for name, rows in others.groupby("method", sort=False):
        look: dict[str, Any] = look_of(str(name)) | {"marker": "o", "capsize": 2, "elinewidth": 1}
        ranks = rows["rank"]
        if len(rows) == 1:  # side by side, or they hide one another
            look |= {"marker": NETWORK_MARKERS[singles % len(NETWORK_MARKERS)], "linestyle": "", "markersize": 7}
            singles += 1
            ranks = ranks * 1.06**singles
        axes.errorbar(ranks, rows[measure], None if error is None else rows[error], label=str(name), **look)
    axes.plot(full["rank"], full[measure], color=X_COLOUR, marker="P", linestyle="", label="X itself")
    axes.axhline(full[measure].iloc[0], color=X_COLOUR, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted(set(table["rank"])), [str(rank) for rank in ticks])
    axes.set_xlabel(f"rank r of {full['rank'].iloc[0]}; methods of one rank side by side, right of it")


def draw_rates(path: Path | None, comparison: Comparison) -> Figure:
    """Bytes per picture against cosine and against IoU: a colour per method, a marker per format, the front dashed."""
    table, shown = comparison.storage, [("cosine", "cosine of X and what is read back", "on_front")]
    if comparison.metrics["task"]:
        shown.append(("task_iou", "IoU of the box found by what is read back", "on_task_front"))
    with open_figure(path, (5.5 * len(shown) + 1.5, 4.6)) as figure:
        for axes, (measure, label, front) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw_rates(axes, table, measure, front)
            axes.set_ylabel(label)
        figure.legend(handles=list(_keys(table)), loc="outside right center")
    return figure


def _draw_rates(axes: Axes, table: pd.DataFrame, measure: str, front: str) -> None:
    for (name, format), rows in table.groupby(["method", "format"], sort=False):
        look: dict[str, Any] = {
            "color": _colour(name),
            "marker": MARKER_OF[format],
            "markersize": 5,
            "linewidth": 0.7,
            "alpha": 0.8,
        }
        axes.plot(rows["bytes_per_picture"] / 1000, rows[measure].clip(upper=HIGHEST), **look)
    best = table[table[front]].sort_values("bytes_per_picture")
    y = best[measure].clip(upper=HIGHEST)
    line: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1, "zorder": 1, "drawstyle": "steps-post"}
    axes.plot(best["bytes_per_picture"] / 1000, y, **line)
    axes.set_xscale("log")
    axes.set_xlabel("kB per picture")
    if measure == "cosine" and (table[measure] > 0).all():
        axes.set_yscale("logit")  # 0.99 and 0.999 differ as 0.9 and 0.99 do
        axes.set_yticks(COSINE_TICKS, [f"{tick:g}" for tick in COSINE_TICKS], minor=False)
        axes.set_yticks([], minor=True)
        axes.set_yticks([HIGHEST], [f"≥ {HIGHEST:g}"], minor=True)
        axes.set_ylim(min(0.9 * table[measure].min(), 0.5), 1 - (1 - HIGHEST) / 2)


def _keys(table: pd.DataFrame) -> Iterator[Line2D]:
    for name in table["method"].unique():
        yield Line2D([], [], color=_colour(name), marker="s", linestyle="", label=str(name))
    for format in table["format"].unique():
        yield Line2D([], [], color=GREY, marker=MARKER_OF[format], linestyle="", label=str(format))
    yield Line2D([], [], color="black", linestyle="--", label="front")


def _colour(method: object) -> str:
    return X_COLOUR if method == X else colour_of(str(method))


KINDS = {"similarity": draw_comparison, "task": draw_task, "rate_distortion": draw_rates}
"""How each kind of picture of `Comparison.plot` is drawn."""
PICTURES = dict(zip((COMPARISON, "task_iou.png", "rate_distortion.png"), KINDS.values(), strict=True))
"""File to what draws it."""


def draw_pictures(folder: Path, comparison: Comparison) -> list[Path]:
    """Draws all PICTURES of a comparison to `folder`."""
    for name, draw in PICTURES.items():
        draw(folder / name, comparison)
    return [folder / name for name in PICTURES]
