"""Pictures of a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState

from subspacelab.pipeline.tuning import finished, importances
from subspacelab.plotting.figures import COLOURS, GREY, count_along, drawn_name, open_figure, say


def draw_study(folder: Path, study: optuna.Study, metric: str) -> list[Path]:
    """Draws history.png and importances.png to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [(t.number, t.value) for t in finished(study) if t.state is TrialState.COMPLETE and t.value is not None]
    history, shares = folder / "history.png", folder / "importances.png"
    maximize = study.direction is optuna.study.StudyDirection.MAXIMIZE
    draw_history(history, metric, [n for n, _ in found], [v for _, v in found], maximize=maximize)
    draw_importances(shares, importances(study))
    return [history, shares]


def draw_history(
    path: Path | None, metric: str, numbers: Sequence[int], values: Sequence[float], *, maximize: bool
) -> Figure:
    """The value of each trial, and the best so far."""
    with open_figure(path, (5.0, 3.2)) as figure:
        axes = figure.add_subplot()
        if not values:
            say(axes, "no trial has a value yet")
        best = [(max if maximize else min)(values[: i + 1]) for i in range(len(values))]
        axes.plot(numbers, values, "o", color=GREY, label="trial")
        axes.step(numbers, best, where="post", color=COLOURS[0], label="best so far")
        axes.set(xlabel="trial", ylabel=drawn_name(metric))
        count_along(axes)
        axes.legend()
    return figure


def draw_importances(path: Path | None, shares: Mapping[str, float]) -> Figure:
    """The share of each parameter in the variance of the values."""
    with open_figure(path, (5.0, 0.9 + 0.35 * max(len(shares), 1))) as figure:
        axes = figure.add_subplot()
        if not shares:
            say(axes, "too few trials to tell")
        names = list(shares)[::-1]
        axes.barh([drawn_name(name) for name in names], [shares[name] for name in names], color=COLOURS[0])
        axes.set(xlabel="importance (share of the spread, functional ANOVA)", xlim=(0, 1))
    return figure
