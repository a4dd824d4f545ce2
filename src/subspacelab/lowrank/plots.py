"""Pictures of trainings and of approximations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from subspacelab.lowrank.baselines import CONTROLS, RANDOM_BASIS
from subspacelab.lowrank.comparison import Comparison
from subspacelab.lowrank.kept_pictures import CachedPicture
from subspacelab.lowrank.training import TrainingResult, ValidationErrors
from subspacelab.lowrank.visualization import Views
from subspacelab.plotting.figures import COLOURS, GREY, count_along, drawn_name, log_if_positive, open_figure, say

COMPARISON = "svd_nn_comparison.png"
"""Files that `draw_comparison` draws."""
_COLOURS = {
    "SVD": "#000000",
    "Sketch": COLOURS[0],
    "PCA sketch": COLOURS[4],
    "ResMLP": COLOURS[1],
    "MLP": COLOURS[2],
    "AdaLoRA": COLOURS[3],
    "PCA basis": GREY,
    "random sketch": COLOURS[5],
    "random basis": "#c8c8c8",
}


def colour_of(method: str) -> str:
    """The colour of a method."""
    return _COLOURS[method]


def look_of(method: str) -> dict[str, Any]:
    """Style of a method's line: a control is broad and pale, so that a thin line of a network on it is visible."""
    control = method in CONTROLS
    return {
        "color": colour_of(method),
        "linewidth": 4 if control else 1.2,
        "alpha": 0.5 if control else 1,
        "zorder": 2 if control else 3,
    }


def draw_comparison(path: Path | None, comparison: Comparison) -> Figure:
    """Histogram of the cosine, cosine by picture (sorted by the SVD's), residual over the SVD's.

    A random basis has a cosine far below all others, which its line in the first legend says.
    """
    images, metrics = comparison.images, comparison.metrics
    by_method = {name: images[images["method"] == name].reset_index(drop=True) for name in images["method"].unique()}
    drawn = {name: table for name, table in by_method.items() if name != RANDOM_BASIS}
    order = np.argsort(by_method["SVD"]["cosine"].to_numpy())
    with open_figure(path, (13, 4.4)) as figure:
        of_rank = f"rank {metrics['rank']} of {metrics['full_rank']}"
        figure.suptitle(f"X and its approximation of {of_rank}, {len(order)} test pictures")
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
    return figure


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


Maps = NDArray[np.float32]  # [channels, side, side]


def view_names(image_idx: int) -> list[str]:
    """Files that `draw_views` draws for a picture."""
    return [*(f"{kind}_{image_idx}.png" for kind in ("channels", "errors", "overlay")), "rank_curve.png"]


VIEWS: dict[str, Callable[[Path | None, Views], Figure]] = {
    "channels": lambda path, v: draw_channels(path, v.original, v.approximations, v.picture, rank=v.rank),
    "errors": lambda path, v: draw_errors(path, v.original, v.approximations, v.picture, rank=v.rank),
    "overlay": lambda path, v: draw_overlay(path, v.errors, v.picture, rank=v.rank),
    "rank_curve": lambda path, v: draw_rank_curve(path, v.curves, v.points, v.full_rank),
}
"""Kind of picture in `Views.plot` -> function that draws it, in the order of `view_names`."""


def draw_views(folder: Path, views: Views) -> list[Path]:
    """Draws channels, their errors, the summed error and the rank curve, `view_names`, to `folder`."""
    paths = [folder / name for name in view_names(views.image_idx)]
    for path, draw in zip(paths, VIEWS.values(), strict=True):
        draw(path, views)
    return paths


def draw_channels(
    path: Path | None, original: Maps, methods: Mapping[str, Maps], picture: CachedPicture, *, rank: str
) -> Figure:
    """One row per method, one column per channel; a column shares one colour scale, that of the original."""
    limits = [(float(c.min()), float(c.max())) for c in original]
    titles = [f"channel {channel}" for channel in range(len(original))]
    title = f"Channels of a picture's features and of their approximations, {rank}"
    return _draw_grid(path, {"original": original, **methods}, picture, limits, titles, "viridis", title)


def draw_errors(
    path: Path | None, original: Maps, methods: Mapping[str, Maps], picture: CachedPicture, *, rank: str
) -> Figure:
    """|error| of each channel, one row per method, one colour scale per channel over all methods."""
    errors = {name: np.abs(maps - original) for name, maps in methods.items()}
    limits = [(0.0, float(highest)) for highest in np.max([e.max(axis=(1, 2)) for e in errors.values()], axis=0)]
    titles = [f"|error|, channel {channel}" for channel in range(len(original))]
    return _draw_grid(path, errors, picture, limits, titles, "magma", f"Errors of the approximations, {rank}")


def _draw_grid(
    path: Path | None,
    rows: Mapping[str, Maps],
    picture: CachedPicture,
    limits: Sequence[tuple[float, float]],
    titles: Sequence[str],
    cmap: str,
    title: str,
) -> Figure:
    """The picture, then a row of maps per entry of `rows`; `limits` and `titles` belong to the columns."""
    with open_figure(path, (1.5 * len(titles) + 2.2, 1.55 * len(rows) + 0.7)) as figure:
        figure.suptitle(title)
        panels = figure.subplots(len(rows), len(titles) + 1, squeeze=False)
        _blank(panels)
        draw_picture(panels[0][0], picture)
        for line, name in zip(panels, rows, strict=True):
            line[1].set_ylabel(name, fontsize=9)
        for channel, ((low, high), title) in enumerate(zip(limits, titles, strict=True)):
            column = panels[:, channel + 1].tolist()
            column[0].set_title(title, fontsize=8)
            for axes, maps in zip(column, rows.values(), strict=True):
                image = axes.imshow(maps[channel], cmap=cmap, vmin=low, vmax=high)
            bar = figure.colorbar(image, ax=column, shrink=0.5, location="bottom")
            bar.ax.tick_params(labelsize=6)
    return figure


def draw_overlay(
    path: Path | None, errors: Mapping[str, NDArray[np.float32]], picture: CachedPicture, *, rank: str
) -> Figure:
    """The error summed over all channels, laid over the picture; one colour scale for all methods."""
    size = picture.pixels.shape[0]
    highest = max(float(e.max()) for e in errors.values())
    with open_figure(path, (2.9 * len(errors) + 0.8, 3.5)) as figure:
        figure.suptitle(f"Summed error of the approximations, {rank}")
        panels = figure.subplots(1, len(errors), squeeze=False)
        _blank(panels)
        for axes, (name, error) in zip(panels[0], errors.items(), strict=True):
            draw_picture(axes, picture)
            where = (0, size, size, 0)
            image = axes.imshow(error, cmap="magma", alpha=0.6, extent=where, vmin=0, vmax=highest)
            axes.set_title(f"{name}: {float(error.mean()):.3g} mean", fontsize=9)
        figure.colorbar(image, ax=panels[0].tolist(), label="Σ |x - x̂| over the channels of a token", shrink=0.8)
    return figure


def draw_rank_curve(
    path: Path | None,
    curves: Mapping[str, Mapping[int, float]],
    points: Mapping[str, tuple[int, float]],
    full_rank: int,
) -> Figure:
    """rank_curve.png: mean cosine of the test pictures over the rank; trained networks as points at theirs."""
    with open_figure(path, (6, 4)) as figure:
        axes = figure.subplots()
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker="o", label=name, **look_of(name))
        for (name, (rank, cosine)), marker in zip(points.items(), ("*", "s", "^", "D"), strict=False):
            look: dict[str, Any] = {
                "color": colour_of(name),
                "marker": marker,
                "markersize": 9,
                "linestyle": "",
                "zorder": 4,
            }
            axes.plot([rank], [cosine], label=name, **look)
        axes.set_xscale("log", base=2)
        ranks = sorted({rank for curve in curves.values() for rank in curve})
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.set(xlabel=f"rank r of {full_rank}", ylabel="cosine of X and its approximation")
        axes.legend()
    return figure


def draw_picture(axes: Any, picture: CachedPicture) -> None:
    """The picture, with its box if the data set has one."""
    axes.imshow(picture.pixels)
    axes.set_title(drawn_name(picture.dataset_id), fontsize=7)
    if picture.bbox is not None:
        x, y, width, height = picture.bbox
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.5))


def _blank(panels: Any) -> None:
    """Removes ticks, and the frame of an empty panel."""
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)


History = Sequence[dict[str, float]]


def draw_loss_comparison(path: Path | None, history: History, best_epoch: int) -> Figure:
    """train_val_loss_comparison.png: training and validation MSE over the epochs, the best one marked."""
    epochs = [int(entry["epoch"]) for entry in history]
    with open_figure(path, (5.5, 3.6)) as figure:
        axes = figure.subplots()
        for name, label, colour in (("train_mse", "training", COLOURS[0]), ("val_mse", "validation", COLOURS[1])):
            axes.plot(epochs, [entry[name] for entry in history], color=colour, marker="o", label=label)
        axes.axvline(best_epoch, color=GREY, linestyle="--", linewidth=1, label=f"best: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel="mean squared error, normalised features")
        count_along(axes)
        axes.legend()
    return figure


def draw_loss_curves(path: Path | None, history: History) -> Figure:
    """loss_curves.png: the whole loss and its MSE, validation cosine, learning rate (and the live rank, if any)."""
    panels: list[tuple[str, dict[str, str]]] = [
        ("loss", {"train_loss": "training, all terms", "train_mse": "training, MSE", "val_mse": "validation, MSE"}),
        ("cosine", {"val_cosine": "validation"}),
        ("learning rate", {"learning_rate": "AdamW"}),
    ]
    if "live_rank" in history[0]:
        panels.append(("live rank", {"live_rank": "columns of A"}))
    epochs = [int(entry["epoch"]) for entry in history]
    with open_figure(path, (3.6 * len(panels), 3.4)) as figure:
        for axes, (ylabel, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for (name, label), colour in zip(curves.items(), COLOURS, strict=False):
                axes.plot(epochs, [entry[name] for entry in history], color=colour, marker="o", label=label)
            if ylabel in ("loss", "learning rate"):
                log_if_positive(axes, [entry[name] for entry in history for name in curves])
            axes.set(xlabel="epoch", ylabel=ylabel)
            count_along(axes)
            axes.legend()
    return figure


def draw_error_heatmap(path: Path | None, errors: Any, *, rank: str) -> Figure:
    """error_heatmap.png: relative error of each token, mean over the validation pictures, on the picture's plane."""
    with open_figure(path, (4.6, 4)) as figure:
        axes = figure.subplots()
        axes.set_title(f"Error of A B, {rank}")
        image = axes.imshow(errors, cmap="viridis", vmin=0)
        axes.set(xlabel="token column", ylabel="token row")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="‖x - x̂‖ / ‖x‖ of a token")
    return figure


def draw_row_norms(path: Path | None, norms: Any, *, rank: str) -> Figure:
    """B_row_norms.png: length of each row of B times its column of A, sorted: how many of the r contribute."""
    with open_figure(path, (5.5, 3.4)) as figure:
        axes = figure.subplots()
        axes.set_title(f"Components of A B, {rank}")
        axes.bar(range(1, len(norms) + 1), sorted(norms, reverse=True), width=1.0, color=COLOURS[0])
        axes.set(xlabel="component, sorted", ylabel="‖a_i‖ ‖b_i‖, mean over validation pictures")
    return figure


def draw_training(result: TrainingResult, errors: ValidationErrors) -> list[Path]:
    """Curves and the errors of the best model on the validation pictures, as four pictures in the results folder."""
    history, best = result.progress.history, result.progress.best_epoch
    names = ("train_val_loss_comparison", "loss_curves", "error_heatmap", "B_row_norms")
    losses, curves, heatmap, norms = paths = [result.folder / f"{name}.png" for name in names]
    draw_loss_comparison(losses, history, best)
    draw_loss_curves(curves, history)
    draw_error_heatmap(heatmap, errors.tokens.numpy(), rank=result.rank)
    draw_row_norms(norms, errors.components.tolist(), rank=result.rank)
    return paths
