"""Pictures of a training: its curves, what it leaves, and how it uses its rank."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subspacelab.reports.figures import COLOURS, GREY, count_along, log_if_positive, open_figure

History = Sequence[dict[str, float]]


def draw_loss_comparison(path: Path, history: History, best_epoch: int) -> Path:
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
    return path


def draw_loss_curves(path: Path, history: History) -> Path:
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
    return path


def draw_error_heatmap(path: Path, errors: Any, side: int, *, rank: str) -> Path:
    """error_heatmap.png: relative error of each token, mean over the validation pictures, on the picture's plane."""
    with open_figure(path, (4.6, 4)) as figure:
        axes = figure.subplots()
        axes.set_title(f"Error of A B, {rank}")
        image = axes.imshow(errors.reshape(side, side), cmap="viridis", vmin=0)
        axes.set(xlabel="token column", ylabel="token row")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="‖x - x̂‖ / ‖x‖ of a token")
    return path


def draw_row_norms(path: Path, norms: Any, *, rank: str) -> Path:
    """B_row_norms.png: length of each row of B times its column of A, sorted: how many of the r carry anything."""
    with open_figure(path, (5.5, 3.4)) as figure:
        axes = figure.subplots()
        axes.set_title(f"Components of A B, {rank}")
        axes.bar(range(1, len(norms) + 1), sorted(norms, reverse=True), width=1.0, color=COLOURS[0])
        axes.set(xlabel="component, sorted", ylabel="‖a_i‖ ‖b_i‖, mean over validation pictures")
    return path
