"""principal_angles.png: how far the leading directions turned, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from subspacelab.reports.figures import count_along, drawn_name, grid_of, log_if_positive, open_figure, say
from subspacelab.rotation.figures.style import HALF_ULP, PAIR_STYLES, draw_null_curve, null_handle, place_of
from subspacelab.rotation.groups import Group

SHADE = "#d9d9d9"
ROUNDING = 1e-6  # degrees; what float64 leaves of 0 is far below, any change of float32 weights above


def draw_principal_angles(path: Path, curves: pd.DataFrame, groups: Sequence[Group]) -> Path:
    """A panel per group: mean angle of the three pairs beside random updates, the largest where it is told."""
    drawn = [group for group in groups if group.is_curve]
    rows, columns = grid_of(max(1, len(drawn)), 4)
    with open_figure(path, (2.9 * columns + 0.4, 2.2 * rows + 0.9)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, group in zip(panels.flat, drawn, strict=False):
            _draw_panel(axes, curves[curves["module"] == group.label])
            axes.set_title(drawn_name(group.label))
            axes.set_xlabel(drawn_name(place_of(group)))
        for axes in panels.flat[len(drawn) :]:
            axes.set_axis_off()
        if not drawn:
            say(panels[0][0], "no group with a layer index")
        for row in panels:
            row[0].set_ylabel("principal angle (degrees)")
        _set_scale(panels[0][0], curves)
        figure.suptitle(
            "Mean principal angle of the leading k directions: trained, and a random update of equal norm", fontsize=11
        )
        figure.legend(handles=_key(), loc="outside lower center", ncols=4)
    return path


def _set_scale(axes: Axes, curves: pd.DataFrame) -> None:
    """One logarithmic scale for all panels, from just below the smallest angle."""
    columns = [f"angle_{what}_{pair.key}" for what in ("max", "mean") for pair in PAIR_STYLES]
    columns += ["floor_angle_max", "floor_angle_mean"]
    values = curves[columns].to_numpy(dtype=float).ravel()
    positive = values[values > ROUNDING]
    if len(positive):
        log_if_positive(axes, positive, plain=True)
        axes.set_ylim(positive.min() / 1.5, positive.max() * 1.5)


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    x = rows["layer"].astype(int)
    for pair in PAIR_STYLES:
        axes.plot(x, rows[f"angle_mean_{pair.key}"], color=pair.colour, marker=pair.marker)
        draw_null_curve(axes, rows, f"angle_mean_{pair.key}")
        largest = rows[f"angle_max_{pair.key}"]
        axes.plot(x, largest, color=pair.colour, marker=pair.marker, markersize=3, linestyle="-.", linewidth=1)
    # From far below, as the axis is logarithmic and cuts it off.
    axes.fill_between(x, 1e-30, rows["floor_angle_mean"], color=SHADE, alpha=0.6, linewidth=0, zorder=0)
    axes.plot(x, rows["floor_angle_max"], color="#5f5f5f", linestyle=":", linewidth=1.2)
    count_along(axes)
    if all((rows[f"angle_mean_{pair.key}"] < ROUNDING).all() for pair in PAIR_STYLES):
        say(axes, "all angles are 0:\nequal, or k covers both sides")


def _key() -> list[Line2D | Patch]:
    pairs: list[Line2D | Patch] = [
        Line2D([], [], color=pair.colour, marker=pair.marker, label=pair.label) for pair in PAIR_STYLES
    ]
    return [
        *pairs,
        null_handle(),
        Patch(color=SHADE, alpha=0.6, label=f"{HALF_ULP}, mean"),
        Line2D([], [], color="black", linestyle="-.", linewidth=1, label="largest angle, where the gap at k is wide"),
        Line2D([], [], color="#5f5f5f", linestyle=":", label=f"{HALF_ULP}, largest"),
    ]
