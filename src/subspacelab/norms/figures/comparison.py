"""comparison.png: several checkpoints side by side, embedding norms and norm scales."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from subspacelab.norms.depth import depth_curves
from subspacelab.norms.results import Analysis
from subspacelab.reports.figures import COLOURS, count_along, drawn_name, log_if_positive, open_figure, say

LINES = ("-", "--", ":", "-.")
TOWERS = ("text", "vision")


def draw_comparison(path: Path, analyses: Sequence[Analysis]) -> Path:
    """A panel of embedding norms and one per part of the models; a colour per model, a line style per kind of norm."""
    found = {curve.tower for analysis in analyses for curve in depth_curves(analysis.norms)}
    towers = [t for t in TOWERS if t in found] + sorted(found - set(TOWERS))
    with open_figure(path, (5.2 * (1 + len(towers)), 4.4)) as figure:
        panels = figure.subplots(1, 1 + len(towers), squeeze=False)[0]
        _draw_norms(panels[0], analyses)
        for axes, tower in zip(panels[1:], towers, strict=True):
            _draw_tower(axes, analyses, tower)
        handles = [
            panels[0].plot([], [], color=colour_of(i), label=drawn_name(a.name))[0] for i, a in enumerate(analyses)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return path


def colour_of(i: int) -> str:
    """The colour of the i-th model."""
    return COLOURS[i % len(COLOURS)]


def _draw_norms(axes: Axes, analyses: Sequence[Analysis]) -> None:
    """The first embedding of each model: the tokens where there are any."""
    drawn = [(i, a.embeddings[0]) for i, a in enumerate(analyses) if a.embeddings]
    kinds = sorted({e.layer.kind for _, e in drawn})
    axes.set_title(f"embedding norms ({', '.join(kinds)})")
    if not drawn:
        return say(axes, "no embedding is analysed in these families")
    edges = np.histogram_bin_edges(np.concatenate([e.vectors.norms.numpy() for _, e in drawn]), bins=60).tolist()
    for i, embedding in drawn:
        norms = embedding.vectors.norms.numpy()
        weights = np.full(len(norms), 1 / len(norms))
        axes.hist(norms, bins=edges, weights=weights, histtype="step", color=colour_of(i), linestyle=LINES[i % 4])
    axes.set(xlabel="L2 norm", ylabel="share of the vectors")


def _draw_tower(axes: Axes, analyses: Sequence[Analysis], tower: str) -> None:
    """Over the block if all models have the same blocks, else over the relative depth; a line style per kind.

    Kinds of different families share styles, and the legend names all that one style stands for.
    """
    of_model = [[c for c in depth_curves(a.norms) if c.tower == tower] for a in analyses]
    same = len({curve.blocks[-1] for curves in of_model for curve in curves}) <= 1
    labels: dict[str, list[str]] = {}
    for i, curves in enumerate(of_model):
        for curve, line in zip(curves, cycle(LINES), strict=False):
            x = curve.blocks if same else [block / max(1, curve.blocks[-1]) for block in curve.blocks]
            axes.plot(x, curve.abs_means, color=colour_of(i), linestyle=line)
            labels.setdefault(line, []).append(curve.label)
    for line, names in labels.items():
        axes.plot([], [], color="black", linestyle=line, label=" / ".join(map(drawn_name, dict.fromkeys(names))))
    values = [value for curves in of_model for curve in curves for value in curve.abs_means]
    if max(values) > 20 * min(values):
        log_if_positive(axes, values, plain=True)
    if same:
        count_along(axes)
    axes.set(title=drawn_name(tower), xlabel="block" if same else "relative depth", ylabel="mean |scale|")
    axes.legend()
