"""Pictures of an analysis: embedding norms, norm scales over depth, comparisons of models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from subspacelab.norms.comparison import Curve, compared_curves, depth_curves, outside_blocks, short_name, towers_of
from subspacelab.norms.measured import Embedding, Norm, by_group
from subspacelab.norms.results import MAGNITUDE, Analysis, Massive, kinds_of
from subspacelab.plotting.figures import (
    COLOURS,
    GREY,
    MARKERS,
    count_along,
    drawn_name,
    grid_of,
    log_if_positive,
    open_figure,
    say,
)

T = TypeVar("T")
DASHES = ("-", "--", ":", "-.")
NUM_STYLES = len(COLOURS) * len(DASHES)
MAX_PANELS = 40
"""Most panels of a picture: more are unreadable and take minutes to lay out."""


def style(i: int) -> dict[str, Any]:
    """Colour and dash of the i-th kind; the first `NUM_STYLES` all differ in one or both."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


LEGEND_LETTERS = 54
"""Letters that fit beside the lines of a legend below a panel."""


def columns_of(lengths: Sequence[int], most: int) -> int:
    """Number of legend columns, at most 3, such that labels of these lengths fit into `most` letters."""
    for columns in (3, 2):
        rows = -(-len(lengths) // columns)
        if sum(max(lengths[i : i + rows]) for i in range(0, len(lengths), rows or 1)) <= most:
            return columns
    return 1


def draw_panels(
    path: Path | None,
    items: Sequence[T],
    draw: Callable[[Axes, T], None],
    *,
    columns: int,
    size: tuple[float, float],
    title: str,
    none: str,
    legend: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Figure:
    """A picture with one panel per item, `size` inches each; without items it shows the text `none`.

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
    return figure


def edges_of(norms: np.ndarray, num_bins: int) -> list[float]:
    """Edges of a histogram's bins; wide enough to be visible if all norms are equal."""
    low, high = float(norms.min()), float(norms.max())
    margin = 0.0 if high - low > 1e-9 * high else 0.05 * high or 0.5
    return [float(edge) for edge in np.linspace(low - margin, high + margin, num_bins + 1)]


BINS = 80


def draw_embedding_norms(path: Path | None, analysis: Analysis) -> Figure:
    """A histogram per embedding, padding rows apart; logarithmic counts, so that single vectors are visible.

    The routers of all blocks share one panel.
    """
    return draw_panels(
        path,
        by_group(analysis.embedding_layers),
        _draw_group,
        columns=2,
        size=(5.5, 3.2),
        title=f"{drawn_name(analysis.model_name)}: norms of embedding vectors",
        none="no embedding was analysed",
    )


def _draw_group(axes: Axes, group: list[Embedding]) -> None:
    norms = np.concatenate([e.vectors.norms[: e.num_tokens].numpy() for e in group])
    padding = np.concatenate([e.vectors.norms[e.num_tokens :].numpy() for e in group])
    together = np.concatenate([norms, padding])
    edges = edges_of(together, max(10, min(BINS, len(together) // 8)))
    label = f"{len(norms):,} with a token" if len(padding) else f"{len(norms):,} vectors"
    axes.hist(norms, bins=edges, color=COLOURS[0], label=label)
    if len(padding):
        axes.hist(padding, bins=edges, color=COLOURS[1], alpha=0.8, label=f"{len(padding):,} padding rows")
    axes.axvline(float(together.mean()), color="black", linestyle="--", linewidth=1, label="mean")
    axes.set_yscale("log", nonpositive="clip")  # bars begin at 0; masked, they would not be drawn
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.7, 6 * axes.get_ylim()[1])  # room for the legend
    first = group[0].layer
    axes.set_title(f"{drawn_name(first.name if len(group) == 1 else first.group)}, {first.kind}")
    axes.set(xlabel="L2 norm", ylabel="vectors")
    axes.legend()


LEVELS: tuple[Any, ...] = ("--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 4)))
"""Dashes of the norm layers outside the blocks, in grey."""


def draw_norm_scales(path: Path | None, analysis: Analysis) -> Figure:
    """A panel per tower: mean |scale| over blocks, and norm layers outside the blocks as horizontal lines.

    No two kinds share colour and dash; if there are too many kinds for that, each has its own panel.
    """
    curves = depth_curves(analysis.norm_layers)
    towers = [t for t in towers_of(analysis.norm_layers) if any(c.tower == t for c in curves)]
    single = {t: outside_blocks(analysis.norm_layers, t) for t in towers}
    lines = {curve.metric: style(i) | {"marker": MARKERS[i % len(MARKERS)]} for i, curve in enumerate(curves)}
    in_order = [norm for tower in towers for norm in single[tower]]
    levels = {norm.layer.key: LEVELS[i % len(LEVELS)] for i, norm in enumerate(in_order)}

    def draw_tower(axes: Axes, tower: str) -> None:
        for curve in curves:
            if curve.tower == tower:
                axes.plot(curve.blocks, curve.abs_means, label=drawn_name(curve.label), **lines[curve.metric])
        for norm in single[tower]:
            line = axes.axhline(norm.scale.abs_mean, color=GREY, linewidth=1, label=drawn_name(short_name(norm)))
            line.set_linestyle(levels[norm.layer.key])
        axes.set_title(drawn_name(tower))
        _finish(axes, [*(v for c in curves if c.tower == tower for v in c.abs_means), *_means(single[tower])])
        labels = axes.get_legend_handles_labels()[1]
        columns = columns_of([len(label) for label in labels], LEGEND_LETTERS)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns, handlelength=3, frameon=False)

    def draw_kind(axes: Axes, kind: Curve | list[Norm]) -> None:
        if isinstance(kind, list):
            axes.plot(_means(kind), [drawn_name(short_name(norm)) for norm in kind], "o", color=GREY)
            axes.set(title="outside the blocks", xlabel="mean |scale|")
            return
        axes.plot(kind.blocks, kind.abs_means, color="black", marker=".")
        axes.set_title(drawn_name(f"{kind.tower}.{kind.label}"))
        _finish(axes, kind.abs_means)

    told_apart = len(curves) <= NUM_STYLES and len(in_order) <= len(LEVELS)
    items = towers if told_apart else [*curves, *([in_order] if in_order else [])]
    return draw_panels(
        path,
        items,
        draw_tower if told_apart else draw_kind,  # type: ignore[arg-type]
        columns=max(1, len(towers)) if told_apart else 4,
        size=(5.8, 3.6) if told_apart else (3.6, 2.4),
        title=f"{drawn_name(analysis.model_name)}: scales of the norm layers",
        none="no norm layer in a block",
    )


def _means(norms: Sequence[Norm]) -> list[float]:
    return [norm.scale.abs_mean for norm in norms]


def _finish(axes: Axes, values: Sequence[float]) -> None:
    if max(values) > 20 * min(values):
        log_if_positive(axes, values, plain=True)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel="block", ylabel="mean |scale|")
    count_along(axes)


def draw_comparison(path: Path | None, analyses: Sequence[Analysis]) -> Figure:
    """A panel per kind of embedding and per kind of norm layer, with a line per model."""
    curves = [compared_curves(analysis.norm_layers) for analysis in analyses]
    kinds = list(dict.fromkeys(kind for found in curves for kind in found))

    def draw(axes: Axes, item: tuple[str, ...]) -> None:
        if item in kinds:
            _draw_curves(axes, [[c for kind, c in found.items() if kind == item] for found in curves])
            axes.set_title(drawn_name(".".join(item)))
        else:
            _draw_embeddings(axes, [[e for e in a.embedding_layers if (e.layer.kind,) == item] for a in analyses])
            axes.set_title(f"{item[0]} embedding")

    return draw_panels(
        path,
        [*((kind,) for kind in kinds_of(analyses)), *kinds],
        draw,
        columns=3,
        size=(4.2, 2.9),
        title="norms of embedding vectors, scales of norm layers",
        none="neither embeddings nor norms in blocks",
        legend=[(analysis.name, style(i)) for i, analysis in enumerate(analyses)],
    )


def _draw_embeddings(axes: Axes, of_model: Sequence[Sequence[Embedding]]) -> None:
    """A line for each table of each model; the tables of all blocks are one."""
    drawn = [
        (i, np.concatenate([e.vectors.norms.numpy() for e in group]))
        for i, embeddings in enumerate(of_model)
        for group in by_group(embeddings)
    ]
    edges = edges_of(np.concatenate([norms for _, norms in drawn]), 60)
    for i, norms in drawn:
        axes.hist(norms, bins=edges, weights=np.full(len(norms), 1 / len(norms)), histtype="step", **style(i))
    axes.set(xlabel="L2 norm", ylabel="share of the vectors")


def _draw_curves(axes: Axes, of_model: Sequence[Sequence[Curve]]) -> None:
    """Curves over blocks if all models have the same number of them, else over relative depth."""
    same = len({curve.blocks[-1] for curves in of_model for curve in curves}) <= 1
    for i, curves in enumerate(of_model):
        for curve in curves:
            x = curve.blocks if same else [block / max(1, curve.blocks[-1]) for block in curve.blocks]
            axes.plot(x, curve.abs_means, marker=".", **style(i))
    values = [value for curves in of_model for curve in curves for value in curve.abs_means]
    if max(values) > 20 * min(values):
        log_if_positive(axes, values, plain=True)
    if same:
        count_along(axes)
    axes.set(xlabel="block" if same else "relative depth", ylabel="mean |scale|")


MASSIVE = "massive.png"


def draw_massive(path: Path | None, found: Massive) -> Figure:
    """Largest |x| over layers, then a panel per norm with its scales over blocks; random dimensions in grey."""
    in_blocks = found.scales[found.scales["block"].notna()]
    items = ["", *in_blocks["norm"].unique()]
    kinds: list[tuple[str, int]] = list(dict.fromkeys(zip(found.dims["kind"], found.dims["dim"], strict=True)))
    leading = [dim for kind, dim in kinds if kind != "random"]

    def line_of(kind: str, dim: int) -> dict[str, Any]:
        return {"color": GREY, "linewidth": 0.8} if kind == "random" else style(leading.index(dim)) | {"marker": "."}

    def draw(axes: Axes, norm: str) -> None:
        table, x, y = (
            (in_blocks[in_blocks["norm"] == norm], "block", "scale") if norm else (found.dims, "layer", "largest")
        )
        for kind, dim in kinds:
            rows = table[table["dim"] == dim]
            axes.plot(rows[x].astype(int), rows[y].abs(), **line_of(kind, dim))
        if norm:
            typical = table.drop_duplicates("block")
            axes.plot(typical["block"].astype(int), typical["typical"], color="black", linestyle="--", linewidth=1)
        else:
            axes.plot(found.layers["layer"], found.layers["median"], color="black", linestyle="--", linewidth=1)
            axes.axhline(MAGNITUDE, color="black", linestyle=":", linewidth=1)
        log_if_positive(axes, table[y].abs(), plain=True)
        count_along(axes)
        axes.set_title(drawn_name(norm) if norm else "residual stream")
        axes.set(xlabel=x, ylabel="|scale|" if norm else "largest |x|")

    legend = [(f"{kind} {dim}", line_of(kind, dim)) for kind, dim in kinds if kind != "random"]
    legend += [("random dimensions", line_of("random", -1))]
    legend += [("median of all", {"color": "black", "linestyle": "--", "linewidth": 1})]
    legend += [(f"{MAGNITUDE:g}", {"color": "black", "linestyle": ":", "linewidth": 1})]
    return draw_panels(
        path,
        items,
        draw,
        columns=3,
        size=(4.2, 2.9),
        title=f"{drawn_name(found.metrics['model'])}: massive activations and the norm scales of their dimensions",
        none="",
        legend=legend,
    )


KINDS = {"embedding_norms": draw_embedding_norms, "norm_scales": draw_norm_scales}
"""Kind of picture in `Analysis.plot` -> function that draws it."""

PICTURES = tuple(f"{kind}.png" for kind in KINDS)
"""Picture files of one model."""

COMPARISON = ("comparison.csv", "comparison.png")
"""Picture and table files of several models."""


def draw_pictures(folder: Path, analysis: Analysis) -> tuple[Path, ...]:
    """Draws the `PICTURES` to `folder`; other files there stay."""
    paths = tuple(folder / name for name in PICTURES)
    for path, draw in zip(paths, KINDS.values(), strict=True):
        draw(path, analysis)
    return paths
