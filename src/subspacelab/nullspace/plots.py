"""Pictures of adapters: null-space ratio by layer, before and after training, and remaining knowledge."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from subspacelab.nullspace.comparison import Comparison
from subspacelab.nullspace.knowledge import BASE
from subspacelab.nullspace.results import Verification
from subspacelab.plotting.figures import (
    COLOURS,
    GREY,
    MARKERS,
    colour_and_marker,
    count_along,
    drawn_name,
    log_if_positive,
    open_figure,
    say,
)

Pair = tuple[Verification, Verification]

NOTHING = 1e-6  # a change of the weights that is only their rounding


KINDS: dict[str, Callable[[Path | None, Comparison], Figure]] = {
    "before_after": lambda path, found: draw_before_after(path, list(found.verified.values())),
    "bx_ratio": lambda path, found: draw_bx_ratio(
        path, [trained for _, trained in found.verified.values()], next(iter(found.verified.values()))[0]
    ),
    "knowledge": lambda path, found: draw_knowledge(path, found.knowledge),
}
"""Kind of picture in `Comparison.plot` -> function that draws it."""


def draw_pictures(folder: Path, comparison: Comparison) -> list[Path]:
    """Draws before_after.png, bx_ratio.png (on the base's inputs, from the first method's start) and knowledge.png."""
    paths = [folder / f"{kind}.png" for kind in KINDS]
    for path, draw in zip(paths, KINDS.values(), strict=True):
        draw(path, comparison)
    return paths


def draw_before_after(path: Path | None, pairs: Sequence[Pair]) -> Figure:
    """Left BX_ratio, right the change of the layer's output, before (dashed) and after training, for each method."""
    with open_figure(path, (11, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        _panel(left, pairs, "BX_ratio")
        _panel(right, pairs, "DeltaX_ratio")
        left.plot([s.BX_ratio_random for s in pairs[0][0].stats], color=GREY, linestyle=":")
        left.set_ylabel("null-space ratio ‖BX‖ / ‖X‖")
        right.set_ylabel("learned, mean ‖ΔW x‖ / mean ‖x‖")
        key = [
            Line2D([], [], color=GREY, linestyle=":", label="a random B"),
            Line2D([], [], color="#000000", linestyle="--", label="before (none where it is 0)"),
            Line2D([], [], color="#000000", linestyle="-", label="after"),
        ]
        figure.legend(handles=left.get_legend_handles_labels()[0] + key, loc="outside lower center", ncols=5)
    return figure


def _panel(axes: Axes, pairs: Sequence[Pair], metric: str) -> None:
    values: list[float] = []
    for i, (before, after) in enumerate(pairs):
        colour, marker = colour_and_marker(i)
        for found, line in ((before, "--"), (after, "-")):
            curve = [getattr(s, metric) for s in found.stats]
            if max(curve) > NOTHING:
                label = drawn_name(found.summary.method) if found is after else None
                fill = "full" if found is after else "none"
                axes.plot(curve, line, label=label, color=colour, marker=marker, markersize=3, fillstyle=fill)
                values += curve
    log_if_positive(axes, values, plain=True)
    axes.set_xlabel("layer with an adapter, in the model's order")
    count_along(axes)


PANELS = {"recall": "answered exactly", "recall_begun": "answer begins right"}


def draw_knowledge(path: Path | None, table: pd.DataFrame) -> Figure:
    """Recall over accuracy on the new task, means over the seeds; one curve over the rates per method.

    Left: facts answered exactly; right: facts whose answer begins correctly. Bars are deviations over the seeds.
    Filled: the rate chosen on validation problems.
    """
    with open_figure(path, (10, 4.6)) as figure:
        if table.empty:
            say(figure.subplots(), "knowledge was not measured")
            return figure
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (measure, wording) in zip(panels, PANELS.items(), strict=True):
            for i, (method, rows) in enumerate(table.groupby("method", sort=False)):
                _curve(axes, i, str(method), rows, measure)
            axes.set(title=wording, xlabel="new task: share of unseen problems solved")
        panels[0].set_ylabel("old knowledge: share of facts")
        panels[0].set_ylim(-0.04, 1.06)
        seeds = int(table["num_seeds"].max())
        spread = f"mean ± deviation of {seeds} trainings" if seeds > 1 else "one training of each"
        title = f"{spread}; filled: the rate chosen on validation problems"
        figure.legend(*panels[0].get_legend_handles_labels(), title=title, loc="outside lower center", ncols=5)
    return figure


def _curve(axes: Axes, i: int, method: str, rows: pd.DataFrame, measure: str) -> None:
    """Style of the i-th curve: the base (0) is a black star; after seven methods colours repeat with new markers."""
    again, number = divmod(i - 1, len(COLOURS))
    colour = "#000000" if method == BASE else [*COLOURS[:-1], GREY][number]
    marker = "*" if method == BASE else MARKERS[(number + again) % len(MARKERS)]
    x, y, chosen = rows["task_mean"], rows[f"{measure}_mean"], rows["chosen"].astype(bool)
    size, line = 11 if method == BASE else 6, "--" if again > 0 else "-"
    label = drawn_name(method)
    axes.plot(x, y, line, color=colour, marker=marker, fillstyle="none", linewidth=1, markersize=size, label=label)
    axes.errorbar(x, y, rows[f"{measure}_std"], rows["task_std"], fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)
    axes.plot(x[chosen], y[chosen], marker, color=colour, markersize=size)


def draw_bx_ratio(path: Path | None, found: Sequence[Verification], built: Verification) -> Figure:
    """The ratio over layers for each method, with the random baseline and the optimum, on the base's inputs.

    `built` is any adapter before its training, when a layer's inputs are those of the base.
    """
    with open_figure(path, (7.5, 4.4)) as figure:
        axes = figure.subplots()
        for i, verification in enumerate(found):
            curve = [s.base_BX_ratio for s in verification.stats]
            colour, marker = colour_and_marker(i)
            axes.plot(curve, label=drawn_name(verification.summary.method), linewidth=1, color=colour, marker=marker)
        axes.plot([s.BX_ratio_random for s in built.stats], color=GREY, linestyle=":", label="a random B")
        optimum = [s.BX_ratio_optimum for s in built.stats]
        axes.plot(optimum, color="#000000", linestyle="--", linewidth=1, label="optimum")
        log_if_positive(axes, [s.base_BX_ratio for v in found for s in v.stats] + optimum, plain=True)
        axes.set(
            xlabel="layer with an adapter, in the model's order",
            ylabel="null-space ratio ‖BX‖ / ‖X‖ on the base's inputs",
        )
        count_along(axes)
        figure.legend(loc="outside lower center", ncols=4)
    return figure
