"""embedding_norms.png: how long the vectors of each embedding are."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, StrMethodFormatter

from subspacelab.norms.figures import draw_panels, edges_of
from subspacelab.norms.results import Analysis, Embedding, by_group
from subspacelab.reports.figures import COLOURS, drawn_name

BINS = 80


def draw_embedding_norms(path: Path, analysis: Analysis) -> Path:
    """A histogram per embedding, padding rows apart; counts on a logarithmic axis, so that single vectors show.

    The routers of all blocks are in one panel.
    """
    return draw_panels(
        path,
        by_group(analysis.embeddings),
        _draw_group,
        columns=2,
        size=(5.5, 3.2),
        title=f"{drawn_name(analysis.model_name)}: norms of embedding vectors",
        none="no embedding is analysed in this family",
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
