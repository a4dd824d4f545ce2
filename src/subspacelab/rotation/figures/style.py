"""What the pictures of a comparison have in common: the pairs, the null model, and where groups sit in the model."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from subspacelab.reports.figures import COLOURS
from subspacelab.rotation.groups import Group

HALF_ULP = "half an ulp of bf16 noise"
RANDOM_UPDATE = "random update of equal norm"
PLACES = {"visual.blocks": "vision block", "model.layers": "language layer"}


@dataclass(frozen=True)
class Pair:
    """How a pair of checkpoints is drawn."""

    key: str
    """Suffix of its columns."""
    label: str
    """Name in legends."""
    colour: str
    """Line colour."""
    marker: str
    """Marker."""


PAIR_STYLES = (
    Pair("01", "base → stage 1", COLOURS[0], "o"),
    Pair("12", "stage 1 → stage 2", COLOURS[1], "s"),
    Pair("02", "base → stage 2", COLOURS[2], "^"),
)


def draw_null_curve(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """The null model of a measure over the layers, where there is one: black dashes, two deviations shaded."""
    if f"{column}_null_mean" not in rows:
        return
    x, mean, std = rows["layer"].astype(int), rows[f"{column}_null_mean"], rows[f"{column}_null_std"].fillna(0)
    axes.fill_between(x, mean - 2 * std, mean + 2 * std, color="black", alpha=0.12, linewidth=0)
    axes.plot(x, mean, color="black", linestyle="--", linewidth=1, zorder=4)


def null_handle() -> Line2D:
    """The entry of `draw_null_curve` in a legend."""
    return Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"{RANDOM_UPDATE} (+- 2 deviations)")


def place_of(group: Group) -> str:
    """What the layer index of a group counts, such as `vision block`."""
    name, layer = next((n, i) for n, i in group.members.items() if i is not None)
    stem = name.partition(f".{layer}.")[0]
    return PLACES.get(stem, stem)
