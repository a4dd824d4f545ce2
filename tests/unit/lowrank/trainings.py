"""Trainings of a second, and what lies in a folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from subspacelab.lowrank import trainer
from subspacelab.lowrank.config import AllocatorConfig, TrainLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.trainer import Log
from subspacelab.lowrank.training import TrainingResult
from subspacelab.lowrank.training import train_into as train

RANK, SEED = 4, 3
ALLOCATOR = {
    "use_rank_allocator": True,
    "allocator": AllocatorConfig(init_warmup=3, final_warmup=4, mask_interval=2, keep_ratio=0.5),
}
# Arch and settings of every kind of training there is.
JOBS: list[tuple[str, dict[str, Any]]] = [
    ("ResMLP", {}),
    ("MLP", {"start": "random"}),
    ("AdaLoRA", {}),
    ("AdaLoRA", ALLOCATOR),
    ("Sketch", {}),
]
JOB_NAMES = ["ResMLP", "MLP", "AdaLoRA", "AdaLoRA with allocator", "Sketch"]


class Killed(Exception):
    """Stands for whatever ends a run."""


def settings_of(**given: Any) -> TrainLowrankConfig:
    """Three epochs of five batches, with dropout."""
    defaults = {"batch_size": 4, "epochs": 3, "lr": 1e-3, "dropout": 0.2, "device": "cpu"}
    return TrainLowrankConfig(**defaults | given)


def train_tiny(
    features: Features,
    results: Path,
    arch: str = "Sketch",
    *,
    rank: int = RANK,
    seed: int = SEED,
    log: Log = lambda metrics, step: None,
    **given: Any,
) -> TrainingResult:
    return train(features, results, arch=arch, rank=rank, seed=seed, settings=settings_of(**given), log=log)


def kill_at(epoch: int) -> Callable[[Mapping[str, float], int], None]:
    """A log that ends the run when `epoch` is logged."""

    def log(metrics: Mapping[str, float], step: int) -> None:
        if step == epoch:
            raise Killed

    return log


@contextmanager
def killed_in(monkeypatch: pytest.MonkeyPatch, written: str, call: int) -> Iterator[list[str]]:
    """Ends a training in the `call`-th call of one of the functions that write its files; yields the calls so far."""
    write, calls = getattr(trainer, written), []

    def kill(*args: Any, **kwargs: Any) -> None:
        calls.append(written)
        if len(calls) == call:
            raise Killed
        write(*args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(trainer, written, kill)
        yield calls


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
