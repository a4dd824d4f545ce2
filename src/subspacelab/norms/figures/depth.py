"""norm_scales.png: how the scale of each kind of norm goes through the depth of the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from subspacelab.norms.depth import Curve, depth_curves, outside_blocks, short_name, towers_of
from subspacelab.norms.figures import NUM_STYLES, draw_panels, style
from subspacelab.norms.results import Analysis, Norm
from subspacelab.reports.figures import GREY, MARKERS, count_along, drawn_name, log_if_positive

LEVELS: tuple[Any, ...] = ("--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 4)))
"""Dashes of the norms outside the blocks, in grey."""


def draw_norm_scales(path: Path, analysis: Analysis) -> Path:
    """A panel per part of the model: mean |scale| over the block, and norms outside the blocks as level lines.

    No two kinds of norm share colour and dash; where there are more kinds than that allows, each has its own panel.
    """
    curves = depth_curves(analysis.norms)
    towers = [t for t in towers_of(analysis.norms) if any(c.tower == t for c in curves)]
    single = {t: outside_blocks(analysis.norms, t) for t in towers}
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
        axes.legend(ncols=1 + len(axes.get_lines()) // 10, handlelength=3)

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
