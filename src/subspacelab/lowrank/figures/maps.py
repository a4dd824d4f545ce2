"""Channels and errors where they are in the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from subspacelab.lowrank.features import CachedPicture
from subspacelab.lowrank.figures.style import colour_of, look_of
from subspacelab.reports.figures import COLOURS, drawn_name, open_figure

Maps = NDArray[np.float32]  # [channels, side, side]


def draw_channels(
    path: Path, original: Maps, methods: Mapping[str, Maps], picture: CachedPicture, *, rank: str
) -> Path:
    """One row per method, one column per channel; a column shares one colour scale, that of the original."""
    limits = [(float(c.min()), float(c.max())) for c in original]
    titles = [f"channel {channel}" for channel in range(len(original))]
    title = f"Channels of a picture's features and of their approximations, {rank}"
    return _draw_grid(path, {"original": original, **methods}, picture, limits, titles, "viridis", title)


def draw_errors(path: Path, original: Maps, methods: Mapping[str, Maps], picture: CachedPicture, *, rank: str) -> Path:
    """|error| of each channel, one row per method, one colour scale per channel over all methods."""
    errors = {name: np.abs(maps - original) for name, maps in methods.items()}
    limits = [(0.0, float(highest)) for highest in np.max([e.max(axis=(1, 2)) for e in errors.values()], axis=0)]
    titles = [f"|error|, channel {channel}" for channel in range(len(original))]
    return _draw_grid(path, errors, picture, limits, titles, "magma", f"Errors of the approximations, {rank}")


def _draw_grid(
    path: Path,
    rows: Mapping[str, Maps],
    picture: CachedPicture,
    limits: Sequence[tuple[float, float]],
    titles: Sequence[str],
    cmap: str,
    title: str,
) -> Path:
    """The picture, then a row of maps per entry of `rows`; `limits` and `titles` belong to the columns."""
    with open_figure(path, (1.5 * len(titles) + 2.2, 1.55 * len(rows) + 0.7)) as figure:
        figure.suptitle(title)
        panels = figure.subplots(len(rows), len(titles) + 1, squeeze=False)
        _blank(panels)
        draw_picture(panels[0][0], picture)
        for line, name in zip(panels, rows, strict=True):
            line[1].set_ylabel(name, fontsize=9)
        for channel, ((low, high), title) in enumerate(zip(limits, titles, strict=True)):
            column = panels[:, channel + 1].tolist()
            column[0].set_title(title, fontsize=8)
            for axes, maps in zip(column, rows.values(), strict=True):
                image = axes.imshow(maps[channel], cmap=cmap, vmin=low, vmax=high)
            bar = figure.colorbar(image, ax=column, shrink=0.5, location="bottom")
            bar.ax.tick_params(labelsize=6)
    return path


def draw_overlay(path: Path, errors: Mapping[str, NDArray[np.float32]], picture: CachedPicture, *, rank: str) -> Path:
    """The error summed over all channels, laid over the picture; one colour scale for all methods."""
    size = picture.pixels.shape[0]
    highest = max(float(e.max()) for e in errors.values())
    with open_figure(path, (2.9 * len(errors) + 0.8, 3.5)) as figure:
        figure.suptitle(f"Summed error of the approximations, {rank}")
        panels = figure.subplots(1, len(errors), squeeze=False)
        _blank(panels)
        for axes, (name, error) in zip(panels[0], errors.items(), strict=True):
            draw_picture(axes, picture)
            where = (0, size, size, 0)
            image = axes.imshow(error, cmap="magma", alpha=0.6, extent=where, vmin=0, vmax=highest)
            axes.set_title(f"{name}: {float(error.mean()):.3g} mean", fontsize=9)
        figure.colorbar(image, ax=panels[0].tolist(), label="Σ |x - x̂| over the channels of a token", shrink=0.8)
    return path


def draw_rank_curve(
    path: Path, curves: Mapping[str, Mapping[int, float]], points: Mapping[str, tuple[int, float]], full_rank: int
) -> Path:
    """rank_curve.png: mean cosine of the test pictures over the rank; trained networks as points at theirs."""
    with open_figure(path, (6, 4)) as figure:
        axes = figure.subplots()
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker="o", label=name, **look_of(name))
        for (name, (rank, cosine)), marker in zip(points.items(), ("*", "s", "^", "D"), strict=False):
            look: dict[str, Any] = {
                "color": colour_of(name),
                "marker": marker,
                "markersize": 9,
                "linestyle": "",
                "zorder": 4,
            }
            axes.plot([rank], [cosine], label=name, **look)
        axes.set_xscale("log", base=2)
        ranks = sorted({rank for curve in curves.values() for rank in curve})
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.set(xlabel=f"rank r of {full_rank}", ylabel="cosine of X and its approximation")
        axes.legend()
    return path


def draw_picture(axes: Any, picture: CachedPicture) -> None:
    """The picture, with its box where the data set has one."""
    axes.imshow(picture.pixels)
    axes.set_title(drawn_name(picture.dataset_id), fontsize=7)
    if picture.bbox is not None:
        x, y, width, height = picture.bbox
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.5))


def _blank(panels: Any) -> None:
    """No ticks, and no frame around what stays empty."""
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
