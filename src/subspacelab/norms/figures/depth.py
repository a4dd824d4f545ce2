"""norm_scales.png: how the scale of each kind of norm goes through the depth of the model."""

from pathlib import Path

from matplotlib.axes import Axes

from subspacelab.norms.depth import Curve, depth_curves, outside_blocks, towers_of
from subspacelab.norms.results import Analysis, Norm
from subspacelab.reports.figures import (
    GREY,
    colour_and_marker,
    count_along,
    drawn_name,
    log_if_positive,
    open_figure,
    say,
)

LINES = ("--", ":", "-.")


def draw_norm_scales(path: Path, analysis: Analysis) -> Path:
    """A panel per part of the model: mean |scale| over the block, and norms outside the blocks as level lines."""
    curves = depth_curves(analysis.norms)
    towers = [t for t in towers_of(analysis.norms) if any(c.tower == t for c in curves)]
    with open_figure(path, (5.8 * max(1, len(towers)), 4.2)) as figure:
        panels = figure.subplots(1, max(1, len(towers)), squeeze=False)[0]
        for axes, tower in zip(panels, towers, strict=False):
            _draw_tower(axes, [c for c in curves if c.tower == tower], outside_blocks(analysis.norms, tower))
            axes.set_title(drawn_name(tower))
        panels[0].set_ylabel("mean |scale|")
        if not towers:
            say(panels[0], "no norm layer in a block")
        figure.suptitle(f"{drawn_name(analysis.model_name)}: scales of the norm layers", fontsize=11)
    return path


def _draw_tower(axes: Axes, curves: list[Curve], single: list[Norm]) -> None:
    values = [value for curve in curves for value in curve.abs_means] + [n.scale.abs_mean for n in single]
    for i, curve in enumerate(curves):
        colour, marker = colour_and_marker(i)
        axes.plot(curve.blocks, curve.abs_means, label=drawn_name(curve.label), color=colour, marker=marker)
    for i, norm in enumerate(single):
        label = ".".join(norm.layer.name.layer.split(".")[-2:])
        axes.axhline(
            norm.scale.abs_mean, color=GREY, linestyle=LINES[i % len(LINES)], linewidth=1, label=drawn_name(label)
        )
    if max(values) > 20 * min(values):
        log_if_positive(axes, values, plain=True)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("block")
    count_along(axes)
    axes.legend()
