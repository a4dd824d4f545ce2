"""Pictures of room 4: embedding norms, norm scales over depth, several models side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes

from subspacelab.reports.figures import COLOURS, drawn_name, grid_of, open_figure, say

T = TypeVar("T")
DASHES = ("-", "--", ":", "-.")
NUM_STYLES = len(COLOURS) * len(DASHES)
MAX_PANELS = 40
"""More are read by nobody, and take minutes to lay out."""


def style(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th kind: no two of the first `NUM_STYLES` share both."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def draw_panels(
    path: Path,
    items: Sequence[T],
    draw: Callable[[Axes, T], None],
    *,
    columns: int,
    size: tuple[float, float],
    title: str,
    none: str,
    legend: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Path:
    """A picture of one panel an item, `size` inches each; `none` is said where there is no item.

    `legend`: labels and styles of the lines that all panels share.
    """
    shown = items[:MAX_PANELS]
    rows, columns = grid_of(max(1, len(shown)), columns)
    with open_figure(path, (size[0] * columns, 0.6 + size[1] * rows)) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, item in zip(panels, shown, strict=False):
            draw(axes, item)
        for axes in panels[max(1, len(shown)) :]:
            axes.set_axis_off()
        if not shown:
            say(panels[0], none)
        more = f" (the first {MAX_PANELS} of {len(items)})" if len(shown) < len(items) else ""
        figure.suptitle(title + more, fontsize=11)
        if legend:
            handles = [panels[0].plot([], [], label=drawn_name(label), **line)[0] for label, line in legend]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return path


def edges_of(norms: np.ndarray, num_bins: int) -> list[float]:
    """Edges of a histogram's bins, wide enough to be told apart where all norms are equal."""
    low, high = float(norms.min()), float(norms.max())
    margin = 0.0 if high - low > 1e-9 * high else 0.05 * high or 0.5
    return [float(edge) for edge in np.linspace(low - margin, high + margin, num_bins + 1)]
