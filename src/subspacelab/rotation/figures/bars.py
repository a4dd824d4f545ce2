"""A measure of all three pairs, group by group: mean and range, random updates, and half an ulp of bf16 noise."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from subspacelab.reports.figures import GREY, drawn_name, log_if_positive, say
from subspacelab.rotation.figures.style import HALF_ULP, PAIR_STYLES, RANDOM_UPDATE
from subspacelab.rotation.groups import Group


def draw_by_group(
    axes: Axes,
    layers: pd.DataFrame,
    groups: Sequence[Group],
    measure: str,
    label: str,
    *,
    log: bool = False,
    legend: bool = False,
) -> None:
    """One column of markers per group: mean over its weights with the spread from least to most as a line."""
    if layers[f"{measure}_01"].isna().all():
        say(axes, "needs complete factors:\nthese keep the leading triples only")
        axes.set_yticks([])
    members = [layers[layers["weight"].isin(group.members)] for group in groups]
    shown: list[float] = []
    for offset, pair in zip((-0.22, 0, 0.22), PAIR_STYLES, strict=True):
        values = [rows[f"{measure}_{pair.key}"].astype(float) for rows in members]
        x = np.arange(len(groups)) + offset
        axes.vlines(x, [v.min() for v in values], [v.max() for v in values], color=pair.colour, alpha=0.45, linewidth=2)
        mean = [v.mean() for v in values]
        axes.plot(x, mean, pair.marker, color=pair.colour, label=pair.label)
        shown += mean
        null = f"{measure}_{pair.key}_null_mean"
        if null in layers:
            random = [rows[null].astype(float).mean() for rows in members]
            label_once = RANDOM_UPDATE if pair is PAIR_STYLES[-1] else None
            axes.plot(x, random, "_", color="black", markersize=9, markeredgewidth=1.3, label=label_once)
            shown += random
    floor = [rows[f"floor_{measure}"].astype(float).mean() for rows in members]
    axes.hlines(floor, np.arange(len(groups)) - 0.4, np.arange(len(groups)) + 0.4, color=GREY, label=HALF_ULP)
    if log:
        log_if_positive(axes, [*shown, *floor], plain=True)
    axes.set_ylabel(label)
    axes.set_xticks(range(len(groups)), [drawn_name(group.label) for group in groups], rotation=40, ha="right")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(visible=False, axis="x")
    if legend:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5)
