"""Curves over layers: composition errors and principal angles, with random updates and the rounding floor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from subspacelab.plotting.figures import (
    COLOURS,
    GREY,
    colour_and_marker,
    count_along,
    drawn_name,
    grid_of,
    log_if_positive,
    open_figure,
    say,
)
from subspacelab.rotation.groups import Group
from subspacelab.rotation.measuring import link_pairs

HALF_ULP = "half an ulp of bf16 noise"
RANDOM_UPDATE = "random update of equal norm"
PLACES = {"visual.blocks": "vision block", "model.layers": "language layer"}


@dataclass(frozen=True)
class Pair:
    """Style of a pair of checkpoints."""

    key: str
    """Suffix of its columns."""
    label: str
    """Label in legends."""
    colour: str
    """Line colour."""
    marker: str
    """Marker."""


PAIR_STYLES = (
    Pair("01", "base → stage 1", COLOURS[0], "o"),
    Pair("12", "stage 1 → stage 2", COLOURS[1], "s"),
    Pair("02", "base → stage 2", COLOURS[2], "^"),
)


def link_styles(names: Sequence[str]) -> tuple[Pair, ...]:
    """Styles of the links between the checkpoints `names`."""
    return tuple(
        Pair(key, drawn_name(f"{a} → {b}"), *colour_and_marker(i))
        for i, (key, a, b) in enumerate(zip(link_pairs(len(names)), names[:-1], names[1:], strict=True))
    )


def draw_null_curve(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draws the null model of a measure over layers, if there is one: black dashes, two deviations shaded."""
    if f"{column}_null_mean" not in rows:
        return
    x, mean, std = rows["layer"].astype(int), rows[f"{column}_null_mean"], rows[f"{column}_null_std"].fillna(0)
    axes.fill_between(x, mean - 2 * std, mean + 2 * std, color="black", alpha=0.12, linewidth=0)
    axes.plot(x, mean, color="black", linestyle="--", linewidth=1, zorder=4)


def null_handle() -> Line2D:
    """The legend entry of `draw_null_curve`."""
    return Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"{RANDOM_UPDATE} (+- 2 deviations)")


def place_of(group: Group) -> str:
    """What the layer index of a group counts, such as `vision block`."""
    name, layer = next((n, i) for n, i in group.members.items() if i is not None)
    stem = name.partition(f".{layer}.")[0]
    return PLACES.get(stem, stem)


SMALLEST_ERROR = 1e-20
"""Of a composition: below float32 bases' rounding of 1e-18, above what float64 leaves of 0."""
SIDES = {"U": "left singular vectors (U)", "Vh": "right singular vectors (Vh)"}


def draw_rotation_curves(path: Path | None, curves: pd.DataFrame, groups: Sequence[Group]) -> Figure:
    """A row of panels per part of the model, U left and Vh right: measured, random updates, controls, identities."""
    places: dict[str, list[str]] = {}
    for group in groups:
        if group.is_curve:
            places.setdefault(place_of(group), []).append(group.label)
    with open_figure(path, (11, 1.1 + 3.6 * max(1, len(places)))) as figure:
        panels = figure.subplots(max(1, len(places)), 2, squeeze=False, sharey=True)
        for row, (place, labels) in zip(panels, places.items(), strict=False):
            for axes, side in zip(row, SIDES, strict=True):
                _draw_curves(axes, curves, labels, side)
                axes.set_xlabel(drawn_name(place))
            row[0].set_ylabel("mean squared entry of R₁R₂ - R₃")
            handles = [_handle(i, label) for i, label in enumerate(labels)]
            row[1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
        if not places:
            say(panels[0][0], "no group with a layer index")
        for axes, title in zip(panels[0], SIDES.values(), strict=True):
            axes.set_title(title)
        figure.suptitle(
            "Does the rotation base → stage 2 factor through stage 1?\n"
            "R₁R₂ - R₃ = -U₀ᵀ(I - U₁U₁ᵀ)U₂ sees only the tilt of the tall side's column space",
            fontsize=11,
        )
        figure.legend(handles=_curve_key(), loc="outside lower center", ncols=3)
    return figure


def _draw_curves(axes: Axes, curves: pd.DataFrame, labels: Sequence[str], side: str) -> None:
    measured: list[float] = []
    for i, label in enumerate(labels):
        rows = curves[curves["module"] == label]
        x, y = rows["layer"].astype(int), rows[f"rotation_mse_{side}"]
        measured += list(y)
        colour, marker = colour_and_marker(i)
        if rows[f"identity_{side}"].any():
            axes.plot(x, y, color=GREY, alpha=0.7, linewidth=1, marker=marker, markersize=3)
            continue
        axes.plot(x, y, color=colour, marker=marker, zorder=3)
        draw_null_curve(axes, rows, f"rotation_mse_{side}")
        for control in ("random_mse", "oracle_mse"):
            axes.plot(x, rows[f"{control}_{side}"], color=colour, linestyle="-.", linewidth=0.9, alpha=0.6)
        axes.plot(x, rows[f"floor_rotation_mse_{side}"], color=colour, linestyle=":", linewidth=1.2)
    log_if_positive(axes, measured)
    count_along(axes)
    if not pd.Series(measured).notna().any():
        say(axes, "identities: nothing to measure")
        axes.set_xticks([])
    identities = curves[curves["module"].isin(labels) & curves[f"identity_{side}"]]
    identities = identities.dropna(subset=[f"rotation_mse_{side}"])
    if len(identities):
        above = identities[f"rotation_mse_{side}"].max() * 4
        text = f"identity: {side}₁ square, true for any matrices"
        last = identities["layer"].max()
        axes.update_datalim([(last, 4 * above)])  # the text has its place, where nothing else lies above
        axes.autoscale_view()
        axes.text(last, above, text, color="#5f5f5f", fontsize=8, ha="right", va="bottom")
    if pd.Series(measured).max() > SMALLEST_ERROR and axes.get_ylim()[0] < SMALLEST_ERROR:
        axes.set_ylim(bottom=SMALLEST_ERROR)


def _handle(i: int, label: str) -> Line2D:
    colour, marker = colour_and_marker(i)
    return Line2D([], [], color=colour, marker=marker, label=drawn_name(label))


def _curve_key() -> list[Line2D]:
    return [
        Line2D([], [], color="black", label="measured"),
        null_handle(),
        Line2D(
            [], [], color="black", linestyle="-.", linewidth=0.9, label="middle basis random (high), end's own (low)"
        ),
        Line2D([], [], color="black", linestyle=":", label=HALF_ULP),
        Line2D([], [], color=GREY, linewidth=1, label="identity: proves nothing"),
    ]


SHADE = "#d9d9d9"
ROUNDING = 1e-6  # degrees; what float64 leaves of 0 is far below, any change of float32 weights above


def draw_principal_angles(
    path: Path | None, curves: pd.DataFrame, groups: Sequence[Group], pairs: Sequence[Pair] = PAIR_STYLES
) -> Figure:
    """A panel per group: mean angle of each pair with random updates, and the largest angle if it is given."""
    drawn = [group for group in groups if group.is_curve]
    rows, columns = grid_of(max(1, len(drawn)), 4)
    with open_figure(path, (2.9 * max(3, columns) + 0.4, 2.2 * rows + 0.9)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, group in zip(panels.flat, drawn, strict=False):
            _draw_angles(axes, curves[curves["module"] == group.label], pairs)
            axes.set_title(drawn_name(group.label))
            axes.set_xlabel(drawn_name(place_of(group)))
        for axes in panels.flat[len(drawn) :]:
            axes.set_axis_off()
        if not drawn:
            say(panels[0][0], "no group with a layer index")
        for row in panels:
            row[0].set_ylabel("principal angle (degrees)")
        _set_scale(panels[0][0], curves, pairs)
        figure.suptitle(
            "Mean principal angle of the leading k directions: trained, and a random update of equal norm", fontsize=11
        )
        figure.legend(handles=_angle_key(pairs), loc="outside lower center", ncols=4 if columns > 3 else 2)
    return figure


def _set_scale(axes: Axes, curves: pd.DataFrame, pairs: Sequence[Pair]) -> None:
    """Sets one logarithmic scale for all panels, from just below the smallest angle."""
    columns = [f"angle_{what}_{pair.key}" for what in ("max", "mean") for pair in pairs]
    columns += ["floor_angle_max", "floor_angle_mean"]
    values = curves[columns].to_numpy(dtype=float).ravel()
    positive = values[values > ROUNDING]
    if len(positive):
        log_if_positive(axes, positive, plain=True)
        axes.set_ylim(positive.min() / 1.5, positive.max() * 1.5)


def _draw_angles(axes: Axes, rows: pd.DataFrame, pairs: Sequence[Pair]) -> None:
    x = rows["layer"].astype(int)
    for pair in pairs:
        axes.plot(x, rows[f"angle_mean_{pair.key}"], color=pair.colour, marker=pair.marker)
        draw_null_curve(axes, rows, f"angle_mean_{pair.key}")
        largest = rows[f"angle_max_{pair.key}"]
        axes.plot(x, largest, color=pair.colour, marker=pair.marker, markersize=3, linestyle="-.", linewidth=1)
    # From far below, as the axis is logarithmic and cuts it off.
    axes.fill_between(x, 1e-30, rows["floor_angle_mean"], color=SHADE, alpha=0.6, linewidth=0, zorder=0)
    axes.plot(x, rows["floor_angle_max"], color="#5f5f5f", linestyle=":", linewidth=1.2)
    count_along(axes)
    if all((rows[f"angle_mean_{pair.key}"] < ROUNDING).all() for pair in pairs):
        say(axes, "all angles are 0:\nequal, or k covers both sides")


def _angle_key(pairs: Sequence[Pair]) -> list[Line2D | Patch]:
    lines: list[Line2D | Patch] = [
        Line2D([], [], color=pair.colour, marker=pair.marker, label=pair.label) for pair in pairs
    ]
    return [
        *lines,
        null_handle(),
        Patch(color=SHADE, alpha=0.6, label=f"{HALF_ULP}, mean"),
        Line2D([], [], color="black", linestyle="-.", linewidth=1, label="largest angle, where the gap at k is wide"),
        Line2D([], [], color="#5f5f5f", linestyle=":", label=f"{HALF_ULP}, largest"),
    ]
