"""Scores and curves made by hand."""

from dataclasses import replace

from subspacelab.nullspace.forgetting.curve import Curve, Point
from subspacelab.nullspace.forgetting.results import Forgetting
from subspacelab.nullspace.forgetting.scores import Scores

NOTHING = Scores(0.0, 0.0, 1.0, 1.0, 1.0, 3.0, 0.0, 0.0, 0.0, {}, {})


def known(task: float, recall: float, validation: float | None = None) -> Scores:
    """Scores of a model that solves `task` of the problems and answers `recall` of the probes."""
    validation = task if validation is None else validation
    return replace(NOTHING, task=task, validation=validation, recall=recall, recall_first=recall)


def curve_of(method: str, rate: float, seed: int, *path: Scores) -> Curve:
    """A training with these scores, one a step."""
    return Curve(method, rate, seed, 10, [Point(i + 1, scores) for i, scores in enumerate(path)])


def study_of(*curves: Curve, base: Scores = NOTHING) -> Forgetting:
    """A study that found them."""
    return Forgetting("tiny", 100, base, list(curves), {})
