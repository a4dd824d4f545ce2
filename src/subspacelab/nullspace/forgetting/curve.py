"""One training with its scores on the way: a point is written when it is there, and a killed training goes on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.files import read_json, remove_folder, write_json
from subspacelab.core.settings import validate
from subspacelab.models.fine_tuning import Batch, Example, collate
from subspacelab.models.teacher_forcing import response_logits
from subspacelab.models.trainables import Trainable
from subspacelab.nullspace.forgetting.scores import Scores
from subspacelab.training.fit import FitPlan, fit, one_cycle

PARTS = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of a training after which the model is scored."""
CURVE, SECONDS, SNAPSHOT = "curve.json", "seconds.json", "snapshot"
CLOCKS = ("seconds_per_step", "cpu_seconds_per_step")
"""What `SECONDS` holds."""


@dataclass(frozen=True)
class Point:
    """What the model knows at one moment of a training."""

    step: int
    """Optimizer steps taken."""
    scores: Scores
    """Of the model then."""


@dataclass(frozen=True)
class Curve:
    """One training."""

    method: str
    """A name of `methods.RIVALS`."""
    rate: float
    """AdamW's peak."""
    seed: int
    """Of the start and of the order of the rows."""
    num_parameters: int
    """Numbers that train."""
    points: list[Point]
    """In the order of their steps."""


@dataclass(frozen=True)
class Course:
    """How a model is trained, whatever its method, rate and seed."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Rows of a step."""
    warmup_ratio: float
    """Share of the steps on which the rate rises."""
    kl_weight: float
    """Times the divergence from the base, where a method asks for it."""

    @property
    def scored(self) -> list[int]:
        """Steps after which the model is scored."""
        return sorted({max(1, round(part * self.steps)) for part in PARTS})


@dataclass(frozen=True)
class Setup:
    """What is trained: made anew after a kill, in which it must come out the same."""

    made: Callable[[], Trainable]
    """Puts the method on the base."""
    examples: Sequence[Example]
    """Rows of the new task."""
    pad: int
    """Id that fills up a batch."""
    score: Callable[[Any], Scores]
    """What a model knows; it must not draw random numbers."""
    weight_decay: float = 0.0
    """AdamW's."""
    penalised: bool = False
    """Whether the divergence from the base is added to the loss."""


def train_curve(
    curve: Curve, setup: Setup, course: Course, folder: Path, *, log: Log = no_log, progress: Progress = no_progress
) -> Curve:
    """Trains and scores on the way; `curve` says what, and has no points yet.

    In `folder` stand the points so far and the state of the training: a killed one goes on, to the same bytes, and a
    finished one is read. ValueError where the training diverges.
    """
    if (folder / CURVE).is_file():
        curve = read_curve(folder / CURVE)
    if not _is_finished(curve, course):
        curve = _train(curve, setup, setup.made(), course, folder, log, progress)
    if (folder / SNAPSHOT).exists():
        remove_folder(folder / SNAPSHOT)
    return curve


def _is_finished(curve: Curve, course: Course) -> bool:
    return bool(curve.points) and curve.points[-1].step == course.steps


def _train(
    curve: Curve, setup: Setup, trainable: Trainable, course: Course, folder: Path, log: Log, progress: Progress
) -> Curve:
    curve = replace(curve, num_parameters=trainable.num_parameters)
    parameters, clock = list(trainable.parameters.values()), _Clock()
    optimizer = torch.optim.AdamW(parameters, lr=curve.rate, weight_decay=setup.weight_decay)
    order = _order(len(setup.examples), course, curve.seed)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = collate([setup.examples[i] for i in order[step]], setup.pad)
        return _loss(trainable, batch, course.kl_weight if setup.penalised else 0.0)

    with progress(f"{curve.method} at {curve.rate:g}, seed {curve.seed}", course.steps, "steps") as advance:

        def after_step(done: int) -> None:
            nonlocal curve
            clock.stop()
            advance(1)
            if done in course.scored and done not in {point.step for point in curve.points}:
                curve = replace(curve, points=[*curve.points, Point(done, setup.score(trainable.model))])
                write_json(folder / CURVE, asdict(curve))
            clock.start()

        fit(
            nn.ParameterList(parameters),
            optimizer,
            loss_of,
            _plan(curve, course, folder),
            log=log,
            after_step=after_step,
        )
    write_json(folder / SECONDS, clock.medians())
    return curve


def _plan(curve: Curve, course: Course, folder: Path) -> FitPlan:
    """A cosine to 0; a snapshot wherever the model is scored first, and as often again."""
    return FitPlan(
        num_steps=course.steps,
        learning_rate=partial(
            one_cycle, num_steps=course.steps, peak=curve.rate, warmup=course.warmup_ratio, final=0.0
        ),
        clip=1.0,
        snapshot=folder / SNAPSHOT / "state.safetensors",
        snapshot_every=course.scored[0],
        fingerprint=f"{curve.method} {curve.rate} {curve.seed} {course}",
        log_every=1,
    )


class _Clock:
    """Seconds of each step, of the wall and of this process's threads, without what is done between two steps."""

    def __init__(self) -> None:
        self._laps: list[tuple[float, float]] = []
        self.start()

    def start(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        wall, cpu = self._began
        self._laps.append((time.perf_counter() - wall, time.process_time() - cpu))

    def medians(self) -> dict[str, float]:
        """Of the wall, and of the processor where other work beside it makes the wall's meaningless."""
        return dict(zip(CLOCKS, map(median, zip(*self._laps, strict=True)), strict=True))


def _order(num_rows: int, course: Course, seed: int) -> list[list[int]]:
    """Row numbers of each step: every row once in an order by chance, then every row again in another."""
    generator, wanted, rows = torch.Generator().manual_seed(seed), course.steps * course.batch_size, list[int]()
    while len(rows) < wanted:
        rows += torch.randperm(num_rows, generator=generator).tolist()
    return [rows[i : i + course.batch_size] for i in range(0, wanted, course.batch_size)]


def _loss(trainable: Trainable, batch: Batch, kl_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the response's tokens, and `kl_weight` times their mean KL(base || model)."""
    before = None
    if kl_weight:
        assert trainable.without is not None
        with torch.no_grad(), trainable.without():
            before = response_logits(trainable.model, batch)[0].log_softmax(-1)
    logits, targets = response_logits(trainable.model, batch)
    loss = cross_entropy(logits, targets)
    if before is None:
        return loss, {}
    kl = kl_div(logits.log_softmax(-1), before, reduction="batchmean", log_target=True)
    return loss + kl_weight * kl, {"cross_entropy": loss, "kl": kl}


def read_curve(path: Path) -> Curve:
    """Reads what `train_curve` writes; ValueError names the file and what is wrong."""
    return validate(Curve, read_json(path), where=str(path))


def read_seconds(folder: Path) -> dict[str, float]:
    """Median seconds of a step of the training in `folder`, by `CLOCKS`; empty before it is finished."""
    path = folder / SECONDS
    return dict(read_json(path)) if path.is_file() else {}
