"""Figures in one style, with colours that colour-blind readers can distinguish; equal data give equal bytes."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from subspacelab.core.errors import SettingError
from subspacelab.core.files import write_beside

T = TypeVar("T")

# Okabe & Ito 2008, without the yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8c8c8c"
LONGEST_NAME = 48  # letters of a name from outside that are drawn
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}


@contextmanager
def open_figure(path: Path | None, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure of `size` inches in the project's style; on success writes it to `path` (if given) as PNG.

    pyplot's state is not changed, the user's matplotlibrc is not read, and the file holds no version or time.
    """
    style: dict[Any, Any] = dict(matplotlib.rcParamsDefault) | STYLE | {"backend": "agg"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; that is no news for the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if path is None:
            return
        with write_beside(path) as partial:
            figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})


def draw_kind(kinds: Mapping[str, Callable[[Path | None, T], Figure]], kind: str, result: T) -> Figure:
    """The figure for one kind of picture of a result; SettingError, listing the kinds, for an unknown one."""
    if kind not in kinds:
        raise SettingError(f"kind={kind!r}: allowed are {', '.join(kinds)}")
    return kinds[kind](None, result)


def drawn_name(name: str) -> str:
    """A name from outside (a weight, a model, a group) as plain text for a figure: one line, not too long.

    Dollar signs would start a formula, a leading underscore would hide it in legends, 300 letters would fill the
    figure.
    """
    shown = "".join(c if c.isprintable() else "?" for c in name)
    if len(shown) > LONGEST_NAME:
        shown = f"{shown[: LONGEST_NAME // 2]}…{shown[-LONGEST_NAME // 2 :]}"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def grid_of(num_panels: int, max_columns: int) -> tuple[int, int]:
    """Numbers of rows and columns for that many panels."""
    columns = max(1, min(num_panels, max_columns))
    return -(-num_panels // columns), columns


def colour_and_marker(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th curve; they repeat if there are more curves than colours."""
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def count_along(axes: Axes) -> None:
    """Puts ticks only at whole numbers of the x axis, which counts layers, blocks or epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_if_positive(axes: Axes, values: Iterable[float], *, plain: bool = False) -> None:
    """A logarithmic y axis if any value is positive, else a linear one.

    `plain` writes ticks as 0.1, 1, 10, for quantities that people know in this form.
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_minor_locator(NullLocator())  # the ticks nobody reads took half of the drawing time
    if plain:
        # Over many decades matplotlib thins the ticks, and draws none at all when asked for 1, 2, 5.
        subs = (1.0, 2.0, 5.0) if max(positive) < 300 * min(positive) else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def say(axes: Axes, text: str) -> None:
    """Writes `text` in the middle of a panel without data."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY, wrap=True)
