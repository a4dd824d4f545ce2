"""The picture of the null model: z of each measure, by group and layer."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from subspacelab.plotting.figures import drawn_name, grid_of, open_figure, say
from subspacelab.rotation.groups import Group
from subspacelab.rotation.null_model import LARGE_Z, SUFFIXES, Null, stands_out

COLOURS = "PuOr_r"  # ColorBrewer: orange against purple is told apart in every kind of colour blindness
NO_NULL = "#dcdcdc"
MEASURES = {
    "principal_energy": "energy in the leading frame",
    "update_stable_rank": "stable rank of the update",
    "angle_mean": "mean principal angle",
    "nss": "spectral shift",
}
TICKS = (-1000, -100, -10, 0, 10, 100, 1000)
Grid = Float[np.ndarray, "groups columns"]
Panel = tuple[str, Sequence[str]]
"""Title, and the columns, of which a weight has at most one."""


def panels_of_three() -> list[Panel]:
    """Panels for base, stage 1 and stage 2."""
    whole = [(label, [f"{measure}_02"]) for measure, label in MEASURES.items()]
    others = [
        ("cosine of the two stages", ["cosine_01_12"]),
        ("composition error (tall side)", ["rotation_mse_U", "rotation_mse_Vh"]),
    ]
    return [*whole, *others]


def panels_of_links(labels: Mapping[str, str]) -> list[Panel]:
    """Panels for links; the suffix of a link's columns precedes its label."""
    only = len(labels) == 1
    return [
        (label if only else f"{label}, {link}", [f"{measure}_{key}"])
        for key, link in labels.items()
        for measure, label in MEASURES.items()
    ]


def draw_null_scores(
    path: Path | None, layers: pd.DataFrame, groups: Sequence[Group], panels: Sequence[Panel], what: str
) -> Figure:
    """A panel per measure: z of every group (rows) and layer (columns; `-` outside the layers), with dots on outliers.

    `layers` has a row per weight. Grey: no null model. Blank: no such weight.
    """
    known = [layer for group in groups for layer in group.members.values() if layer is not None]
    num_layers = max(known, default=-1) + 1
    rows, columns = grid_of(len(panels), 2 if num_layers > 12 else 3)
    width = min(max(2.4, 0.2 * (num_layers + 1)), 9.0)
    size = (columns * width + 3.2, rows * (0.19 * len(groups) + 0.75) + 1.3)
    with open_figure(path, size) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        norm = SymLogNorm(linthresh=LARGE_Z, linscale=0.6, vmin=-1000, vmax=1000)
        image = None
        for axes, (label, names) in zip(grid.flat, panels, strict=False):
            image = _draw_panel(axes, layers, groups, names, num_layers, norm)
            axes.set_title(drawn_name(label))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        if image is not None:
            bar = figure.colorbar(image, ax=grid, extend="both", fraction=0.05, ticks=TICKS)
            bar.set_label("z: deviations from random updates", fontsize=8)
            bar.ax.set_yticklabels([f"{tick:g}" for tick in TICKS])
            bar.ax.minorticks_off()
        figure.suptitle(
            f"How far is {what} from a random update of equal norm?\n"
            f"white: as random; dot: stands out (|z| > {LARGE_Z:g}, and of another size); grey: no null model; "
            "-: outside the layers",
            fontsize=10,
        )
    return figure


def _draw_panel(
    axes: Axes,
    layers: pd.DataFrame,
    groups: Sequence[Group],
    columns: Sequence[str],
    num_layers: int,
    norm: SymLogNorm,
) -> AxesImage:
    scores, there, marked = score_grid(layers, groups, columns, num_layers)
    axes.imshow(np.where(there, 0.0, np.nan), cmap=ListedColormap([NO_NULL]), aspect="auto", interpolation="none")
    image = axes.imshow(scores, cmap=COLOURS, norm=norm, aspect="auto", interpolation="none")
    y, x = np.nonzero(marked)
    axes.plot(x, y, "o", color="black", markersize=2.2)
    axes.set_yticks(range(len(groups)), [drawn_name(group.label) for group in groups], fontsize=7)
    step = max(1, math.ceil(num_layers / 12))
    shown = [*range(0, num_layers, step)]
    axes.set_xticks([0, *(layer + 1 for layer in shown)], ["-", *map(str, shown)], fontsize=7)
    axes.grid(visible=False)
    if not there[:, 0].any():
        axes.set_xlim(left=0.5)
    if np.isnan(scores).all():
        say(axes, "no null model")
    return image


def score_grid(
    layers: pd.DataFrame, groups: Sequence[Group], columns: Sequence[str], num_layers: int
) -> tuple[Grid, Grid, Grid]:
    """Mean z per group and layer, NaN if there is none; whether there is a weight; whether one stands out."""
    rows = {row["weight"]: row for row in layers.to_dict("records")}
    shape = (len(groups), num_layers + 1)
    total, count, there, marked = (np.zeros(shape) for _ in range(4))
    for i, group in enumerate(groups):
        for name, layer in group.members.items():
            at = i, 0 if layer is None else layer + 1
            there[at] = 1
            for column in columns:
                z, out = _score(rows[name], column)
                if z is not None:
                    total[at], count[at], marked[at] = total[at] + z, count[at] + 1, max(marked[at], out)
    scores = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return scores, there, marked


def _score(row: Mapping[Hashable, Any], column: str) -> tuple[float | None, bool]:
    mean, deviation, z = (float(row.get(f"{column}_{suffix}", math.nan)) for suffix in SUFFIXES)
    if math.isnan(z):
        return None, False
    return z, stands_out(column, float(row[column]), Null(mean, deviation))
