"""comparison.png: several checkpoints side by side, embedding norms and norm scales."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from subspacelab.norms.depth import Curve, depth_curves
from subspacelab.norms.figures import draw_panels, edges_of, style
from subspacelab.norms.results import Analysis, Embedding, by_group, kinds_of
from subspacelab.reports.figures import count_along, drawn_name, log_if_positive


def draw_comparison(path: Path, analyses: Sequence[Analysis]) -> Path:
    """A panel per kind of embedding and per kind of norm, so that like stands beside like; a line per model."""
    curves = [depth_curves(analysis.norms) for analysis in analyses]
    kinds = list(dict.fromkeys((curve.tower, curve.label) for found in curves for curve in found))

    def draw(axes: Axes, item: tuple[str, ...]) -> None:
        if item in kinds:
            _draw_curves(axes, [[c for c in found if (c.tower, c.label) == item] for found in curves])
            axes.set_title(drawn_name(".".join(item)))
        else:
            _draw_embeddings(axes, [[e for e in a.embeddings if (e.layer.kind,) == item] for a in analyses])
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
    """Over the block if all models have the same number of them, else over the relative depth."""
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
