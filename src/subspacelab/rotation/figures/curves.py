"""rotation_mse_curves.png: does the rotation to the end factor through the middle, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from subspacelab.reports.figures import (
    GREY,
    colour_and_marker,
    count_along,
    drawn_name,
    log_if_positive,
    open_figure,
    say,
)
from subspacelab.rotation.figures.style import HALF_ULP, draw_null_curve, null_handle, place_of
from subspacelab.rotation.groups import Group

SIDES = {"U": "left singular vectors (U)", "Vh": "right singular vectors (Vh)"}


def draw_rotation_curves(path: Path, curves: pd.DataFrame, groups: Sequence[Group]) -> Path:
    """A row of panels per part of the model, U left and Vh right: measured, random updates, controls, identities."""
    places: dict[str, list[str]] = {}
    for group in groups:
        if group.is_curve:
            places.setdefault(place_of(group), []).append(group.label)
    with open_figure(path, (11, 1.1 + 3.6 * max(1, len(places)))) as figure:
        panels = figure.subplots(max(1, len(places)), 2, squeeze=False, sharey=True)
        for row, (place, labels) in zip(panels, places.items(), strict=False):
            for axes, side in zip(row, SIDES, strict=True):
                _draw_panel(axes, curves, labels, side)
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
        figure.legend(handles=_key(), loc="outside lower center", ncols=3)
    return path


def _draw_panel(axes: Axes, curves: pd.DataFrame, labels: Sequence[str], side: str) -> None:
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
    identities = curves[curves["module"].isin(labels) & curves[f"identity_{side}"]]
    if len(identities):
        above = identities[f"rotation_mse_{side}"].max() * 4
        text = f"identity: {side}₁ square, true for any matrices"
        axes.text(identities["layer"].max(), above, text, color="#5f5f5f", fontsize=8, ha="right", va="bottom")


def _handle(i: int, label: str) -> Line2D:
    colour, marker = colour_and_marker(i)
    return Line2D([], [], color=colour, marker=marker, label=drawn_name(label))


def _key() -> list[Line2D]:
    return [
        Line2D([], [], color="black", label="measured"),
        null_handle(),
        Line2D(
            [], [], color="black", linestyle="-.", linewidth=0.9, label="middle basis random (high), end's own (low)"
        ),
        Line2D([], [], color="black", linestyle=":", label=HALF_ULP),
        Line2D([], [], color=GREY, linewidth=1, label="identity: proves nothing"),
    ]
