"""svd_nn_comparison.png: how near each method comes, over all test pictures and picture by picture."""

from pathlib import Path

import numpy as np
import pandas as pd

from subspacelab.lowrank.figures.style import colour_of, methods_of
from subspacelab.reports.figures import open_figure


def draw_comparison(path: Path, images: pd.DataFrame, rank: int) -> Path:
    """Three panels: histogram of the cosine, cosine picture by picture (sorted by the SVD's), relative error."""
    names = methods_of(images)
    by_method = {name: images[images["method"] == name].reset_index(drop=True) for name in names}
    order = np.argsort(by_method["SVD"]["cosine"].to_numpy())
    with open_figure(path, (13, 4)) as figure:
        histogram, single, error = figure.subplots(1, 3)
        low = min(table["cosine"].min() for table in by_method.values())
        bins = np.linspace(low, 1, 41).tolist()
        for name, table in by_method.items():
            colour = colour_of(name)
            label = f"{name}: {table['cosine'].mean():.4f} ± {table['cosine'].std(ddof=0):.4f}"
            histogram.hist(table["cosine"], bins=bins, histtype="step", color=colour, linewidth=1.5, label=label)
            single.plot(table["cosine"].to_numpy()[order], color=colour, label=name)
        histogram.set(xlabel=f"cosine of X and its rank-{rank} approximation", ylabel="test pictures")
        histogram.set_ylim(top=1.7 * histogram.get_ylim()[1])  # room for the legend
        histogram.legend(loc="upper left", title="mean ± deviation")
        single.set(xlabel="test picture, sorted by the SVD's cosine", ylabel="cosine")
        error.boxplot([table["relative_error"] for table in by_method.values()], tick_labels=names, widths=0.6)
        error.set_ylabel("relative error ‖X - X̂‖ / ‖X‖")
        error.set_ylim(bottom=0)
        error.tick_params(axis="x", rotation=35)
    return path
