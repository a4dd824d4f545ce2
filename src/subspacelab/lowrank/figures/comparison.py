"""svd_nn_comparison.png: how near each method comes, over all test pictures and picture by picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from subspacelab.lowrank.figures.style import look_of, methods_of
from subspacelab.lowrank.methods import RANDOM_BASIS
from subspacelab.reports.figures import log_if_positive, open_figure, say


def draw_comparison(path: Path, images: pd.DataFrame, rank: int, full_rank: int) -> Path:
    """Three panels: histogram of the cosine, cosine by picture (sorted by the SVD's), residual over the SVD's.

    A random basis has a cosine far below all others, which its line in the first legend says.
    """
    by_method = {name: images[images["method"] == name].reset_index(drop=True) for name in methods_of(images)}
    drawn = {name: table for name, table in by_method.items() if name != RANDOM_BASIS}
    order = np.argsort(by_method["SVD"]["cosine"].to_numpy())
    with open_figure(path, (13, 4.4)) as figure:
        figure.suptitle(f"X and its approximation of rank {rank} of {full_rank}, {len(order)} test pictures")
        histogram, single, residual = figure.subplots(1, 3)
        low = min(table["cosine"].min() for table in drawn.values())
        bins = np.linspace(low, 1, 41).tolist()
        for name, table in drawn.items():
            look = look_of(name)
            histogram.hist(table["cosine"], bins=bins, histtype="step", label=_mean(name, table), **look)
            single.plot(table["cosine"].to_numpy()[order], label=name, **look)
        histogram.plot([], [], " ", label=_mean(RANDOM_BASIS, by_method[RANDOM_BASIS]) + " (not drawn)")
        histogram.set(xlabel="cosine", ylabel="test pictures")
        histogram.set_ylim(top=1.9 * histogram.get_ylim()[1])  # room for the legend
        histogram.legend(loc="upper left", title="mean ± standard deviation over the pictures")
        single.set(xlabel="test picture, sorted by the SVD's cosine", ylabel="cosine")
        _draw_residuals(residual, by_method)
    return path


def _draw_residuals(axes: Axes, by_method: Mapping[str, pd.DataFrame]) -> None:
    ratios = {name: table["residual_over_svd"].dropna() for name, table in by_method.items()}
    if not any(len(each) for each in ratios.values()):
        say(axes, "the SVD leaves nothing at this rank")
        return
    axes.boxplot(list(ratios.values()), tick_labels=list(ratios), widths=0.6)
    axes.set_ylabel("residual ‖X - X̂‖² over that of the SVD")
    log_if_positive(axes, [value for each in ratios.values() for value in each], plain=True)
    axes.tick_params(axis="x", rotation=35)


def _mean(name: str, table: pd.DataFrame) -> str:
    return f"{name}: {table['cosine'].mean():.4f} ± {table['cosine'].std(ddof=0):.4f}"
