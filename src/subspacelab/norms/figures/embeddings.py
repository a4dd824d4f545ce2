"""embedding_norms.png: how long the vectors of each embedding are."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import NullLocator, StrMethodFormatter

from subspacelab.norms.results import Analysis
from subspacelab.reports.figures import COLOURS, drawn_name, grid_of, open_figure, say

BINS = 80


def draw_embedding_norms(path: Path, analysis: Analysis) -> Path:
    """A histogram per embedding, padding rows apart; counts on a logarithmic axis, so that single vectors show."""
    rows, columns = grid_of(max(1, len(analysis.embeddings)), 2)
    with open_figure(path, (5.5 * columns, 0.6 + 3.2 * rows)) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, embedding in zip(panels, analysis.embeddings, strict=False):
            norms, num_tokens = embedding.vectors.norms.numpy(), embedding.num_tokens
            edges = np.histogram_bin_edges(norms, bins=max(10, min(BINS, len(norms) // 8))).tolist()
            kind = f"{num_tokens:,} vectors" if num_tokens == len(norms) else f"{num_tokens:,} with a token"
            axes.hist(norms[:num_tokens], bins=edges, color=COLOURS[0], label=kind)
            if num_tokens < len(norms):
                label = f"{len(norms) - num_tokens:,} padding rows"
                axes.hist(norms[num_tokens:], bins=edges, color=COLOURS[1], alpha=0.8, label=label)
            axes.axvline(float(norms.mean()), color="black", linestyle="--", linewidth=1, label="mean")
            axes.set_yscale("log", nonpositive="clip")  # bars begin at 0; masked, they would not be drawn
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0.7, 6 * axes.get_ylim()[1])  # room for the legend
            axes.set_title(f"{drawn_name(str(embedding.layer.name))}, {embedding.layer.kind}")
            axes.set(xlabel="L2 norm", ylabel="vectors")
            axes.legend()
        for axes in panels[len(analysis.embeddings) :]:
            axes.set_axis_off()
        if not analysis.embeddings:
            panels[0].set_axis_on()
            say(panels[0], "no embedding is analysed in this family")
        figure.suptitle(f"{drawn_name(analysis.model_name)}: norms of embedding vectors", fontsize=11)
    return path
