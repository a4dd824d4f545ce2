"""Small trainings of adapters on tiny models, and ways to kill them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.language_models import write_text, write_tiny_lm

from subspacelab.checkpoints import resolve_reference
from subspacelab.data.instructions import Instruction
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.config import BuildSettings, TrainSettings
from subspacelab.nullspace.knowledge import Knowledge
from subspacelab.nullspace.training import TrainedAdapter, train_adapter

RANK = 4
STEPS = 7
SETTINGS = TrainSettings(data="rows", max_steps=STEPS, lr=1e-2, batch_size=4, max_length=64, save_steps=2, device="cpu")
ROWS = [Instruction(f"{a}plus{b}", str(a + b)) for a in range(5) for b in range(4)]


class Killed(Exception):
    """Stands for whatever ends a process."""


def write_base(folder: Path, family: str = "llama") -> Path:
    """A tiny model in `folder/lm` and a text in `folder/text.txt`."""
    write_tiny_lm(folder / "lm", family)
    write_text(folder / "text.txt")
    return folder


def write_adapter_of(base: Path, folder: Path, method: str = "lora_null_v2", *, seed: int = 7, **changes: Any) -> Path:
    """An adapter of `RANK` on `base/lm`; returns its folder."""
    settings = BuildSettings(str(base / "text.txt"), calib_loader_size=40, seq_len=16, device="cpu", **changes)
    build_adapter(resolve_reference(str(base / "lm")), folder, method=method, rank=RANK, seed=seed, settings=settings)
    return folder


def train_tiny(adapter: Path, output: Path, *, log: Any = None, seed: int = 7, **changes: Any) -> TrainedAdapter:
    """`STEPS` steps on `ROWS`."""
    rows = changes.pop("rows", ROWS)
    settings = replace(SETTINGS, **changes)
    return train_adapter(adapter, output, rows=rows, settings=settings, seed=seed, log=log or (lambda m, s: None))


def kill_at(step: int) -> Callable[[Mapping[str, float], int], None]:
    """A log that raises at `step`."""

    def log(metrics: Mapping[str, float], at: int) -> None:
        if at == step:
            raise Killed

    return log


def known(recall: float, task: float) -> Knowledge:
    """Knowledge without facts that the calibration text leaves out."""
    return Knowledge(recall, recall, recall, recall, None, None, task, task, math.sqrt(recall * task), 0.5, 3.0)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
