"""The pictures of a comparison."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from subspacelab.core.errors import SettingError
from subspacelab.plotting.figures import (
    COLOURS,
    GREY,
    drawn_name,
    grid_of,
    log_if_positive,
    open_figure,
    say,
)
from subspacelab.rotation.comparison import Comparison
from subspacelab.rotation.curve_plots import (
    HALF_ULP,
    PAIR_STYLES,
    RANDOM_UPDATE,
    Pair,
    draw_principal_angles,
    draw_rotation_curves,
    link_styles,
)
from subspacelab.rotation.groups import Group
from subspacelab.rotation.measuring import wide_of
from subspacelab.rotation.null_plots import draw_null_scores, panels_of_links, panels_of_three

PICTURES = ("rotation_mse_curves.png", "principal_angles.png", "spectra.png", "update_geometry.png", "null_scores.png")
"""Files that `draw_pictures` draws for three checkpoints; for other numbers, all but the first."""
KINDS = ("rotation", "angles", "spectra", "updates", "null_scores")
"""Kinds of picture in `Comparison.plot`, in the order of `PICTURES`."""
MAX_PANELS = 8
LineStyle = Literal["-", "--", ":"]
STAGES = {"stage1": "stage 1", "stage2": "stage 2"}
LINES: tuple[tuple[str, LineStyle, float], ...] = (
    ("#000000", "-", 2.4),
    (COLOURS[4], "--", 1.6),
    (COLOURS[5], ":", 1.6),
    *((colour, "--", 1.2) for colour in COLOURS[:4]),
)
"""Colour, style and width of the checkpoints' spectra, in order; they repeat if there are more checkpoints."""


def draw_spectra(
    path: Path | None,
    layers: pd.DataFrame,
    groups: Sequence[Group],
    spectra: Mapping[str, Float[Tensor, "checkpoints r"]],
    names: Sequence[str] = ("base", "stage 1", "stage 2"),
    pairs: Sequence[Pair] = PAIR_STYLES,
) -> Figure:
    """Singular values over the base's largest for the middle weight of some groups, and the shift of every group."""
    chosen = [groups[i] for i in sorted({*np.linspace(0, len(groups) - 1, MAX_PANELS).round().astype(int)})]
    rows, columns = grid_of(len(chosen), 4)
    with open_figure(path, (2.9 * max(3, columns) + 0.4, 2.3 * rows + 4.2)) as figure:
        halves = figure.subfigures(2, 1, height_ratios=[2.3 * rows, 3.6], squeeze=False)
        upper, lower = halves[0, 0], halves[1, 0]
        panels = upper.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, group in zip(panels.flat, chosen, strict=False):
            name = list(group.members)[len(group.members) // 2]
            _draw_spectrum(axes, spectra[name])
            layer = group.members[name]
            axes.set_title(drawn_name(group.label) + ("" if layer is None else f", layer {layer}"))
        for axes in panels.flat[len(chosen) :]:
            axes.set_axis_off()
        for row in panels:
            row[0].set_ylabel(f"σᵢ / σ₁ of {drawn_name(names[0])}")
        for axes in panels[-1]:
            axes.set_xlabel("index i / rank")
        upper.suptitle("Singular values along the chain", fontsize=11)
        handles = [
            Line2D([], [], color=colour, linestyle=line, linewidth=width, label=drawn_name(stage))
            for stage, (colour, line, width) in zip(names, cycle(LINES), strict=False)
        ]
        upper.legend(handles=handles, loc="outside lower center", ncols=3)
        draw_by_group(
            lower.subplots(), layers, groups, "nss", "normalised spectral shift", pairs, log=True, legend=True
        )
    return figure


def _draw_spectrum(axes: Axes, spectra: Float[Tensor, "checkpoints r"]) -> None:
    scale = spectra[0][0].item() or 1.0
    position = (np.arange(len(spectra[0])) + 1) / len(spectra[0])
    for values, (colour, line, width) in zip(spectra.double(), cycle(LINES), strict=False):
        axes.plot(position, values.numpy() / scale, color=colour, linestyle=line, linewidth=width)
    log_if_positive(axes, spectra[0].tolist(), plain=True)


def draw_by_group(
    axes: Axes,
    layers: pd.DataFrame,
    groups: Sequence[Group],
    measure: str,
    label: str,
    pairs: Sequence[Pair] = PAIR_STYLES,
    *,
    log: bool = False,
    legend: bool = False,
) -> None:
    """One column of markers per group: mean over its weights, with a line from the smallest to the largest."""
    if layers[f"{measure}_{pairs[0].key}"].isna().all():
        say(axes, "needs complete factors:\nthese keep the leading triples only")
        axes.set_yticks([])
    members = [layers[layers["weight"].isin(group.members)] for group in groups]
    shown: list[float] = []
    offsets = 0.22 * (np.arange(len(pairs)) - 1) if len(pairs) == 3 else np.linspace(-0.22, 0.22, len(pairs) + 2)[1:-1]
    for offset, pair in zip(offsets, pairs, strict=True):
        values = [rows[f"{measure}_{pair.key}"].astype(float) for rows in members]
        x = np.arange(len(groups)) + offset
        axes.vlines(x, [v.min() for v in values], [v.max() for v in values], color=pair.colour, alpha=0.45, linewidth=2)
        mean = [v.mean() for v in values]
        axes.plot(x, mean, pair.marker, color=pair.colour, label=pair.label)
        shown += mean
        null = f"{measure}_{pair.key}_null_mean"
        if null in layers:
            random = [rows[null].astype(float).mean() for rows in members]
            label_once = RANDOM_UPDATE if pair is pairs[-1] else None
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


PANELS = {
    "update_norm": "‖ΔW‖ / ‖W‖ (Frobenius)",
    "update_stable_rank": "stable rank of ΔW",
    "unchanged": "share of entries unchanged",
    "principal_energy": "energy in the leading-k frame\n/ that of a random update (dashed: 1)",
}


def draw_update_geometry(
    path: Path | None, layers: pd.DataFrame, groups: Sequence[Group], pairs: Sequence[Pair] = PAIR_STYLES
) -> Figure:
    """Four panels over groups: relative norm, stable rank, unchanged share, principal energy (1 = random)."""
    with open_figure(path, (max(9.0, 0.62 * len(groups) + 3), 7.2)) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (measure, label) in zip(panels.flat, PANELS.items(), strict=True):
            log = measure != "unchanged" and _is_wide(layers, measure, pairs)
            draw_by_group(axes, layers, groups, measure, label, pairs, log=log)
            if not log:
                axes.set_ylim(bottom=0)
        panels[1][0].set_ylim(-0.03, 1.03)
        panels[1][1].axhline(1, color="black", linewidth=0.9, linestyle="--")
        figure.suptitle("The updates along the chain, and random ones of equal norm", fontsize=11)
        handles, labels = panels[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _is_wide(layers: pd.DataFrame, measure: str, pairs: Sequence[Pair]) -> bool:
    """Whether only a logarithmic axis can show the range of the values."""
    values = layers[[f"{measure}_{pair.key}" for pair in pairs] + [f"floor_{measure}"]].to_numpy(dtype=float)
    positive = values[values > 0]
    return len(positive) > 0 and bool(positive.max() > 4 * positive.min())


def pictures_of(num_checkpoints: int) -> tuple[str, ...]:
    """The `PICTURES` for that number of checkpoints."""
    return PICTURES if num_checkpoints == len(PAIR_STYLES) else PICTURES[1:]


def draw_pictures(folder: Path, comparison: Comparison) -> tuple[Path, ...]:
    """Draws all pictures of a comparison to `folder`; returns the files, some or all of `PICTURES`."""
    drawn = tuple(folder / name for name in pictures_of(len(comparison.names)))
    for path in drawn:
        draw(comparison, KINDS[PICTURES.index(path.name)], path)
    return drawn


def draw(comparison: Comparison, kind: str, path: Path | None = None) -> Figure:
    """One of `KINDS` as a figure, written to `path` if given; SettingError if the comparison has no such picture."""
    names, groups, curves, layers = comparison.names, comparison.groups, comparison.curves, comparison.layers
    allowed = [name for name in KINDS if name != "rotation" or comparison.is_chain_of_three]
    if kind not in allowed:
        raise SettingError(f"plot {kind!r} of {len(names)} checkpoints: allowed are {', '.join(allowed)}")
    if kind == "spectra" and not comparison.spectra:
        raise SettingError("plot 'spectra': not among what was loaded; compare again, or save with details")
    if kind == "rotation":
        return draw_rotation_curves(path, curves, groups)
    pairs = PAIR_STYLES if comparison.is_chain_of_three else link_styles(names)
    if not comparison.is_chain_of_three:
        layers = wide_of(layers, ["weight", "module", "layer"])
        curves = wide_of(curves, ["module", "layer"]) if len(curves) else layers.iloc[:0]
    if kind == "angles":
        return draw_principal_angles(path, curves, groups, pairs)
    if kind == "updates":
        return draw_update_geometry(path, layers, groups, pairs)
    if kind == "null_scores":
        links = {pair.key: pair.label for pair in pairs}
        panels = panels_of_three() if comparison.is_chain_of_three else panels_of_links(links)
        what = "base → stage 2" if comparison.is_chain_of_three else "each update"
        return draw_null_scores(path, layers, groups, panels, what)
    return draw_spectra(path, layers, groups, comparison.spectra, [STAGES.get(name, name) for name in names], pairs)
