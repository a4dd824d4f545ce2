"""The loop of every training (schedule, clipping, curves, snapshots), and the settings that trainings share."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from subspacelab.core.callbacks import Log
from subspacelab.core.settings import Count, Positive, settings
from subspacelab.training.snapshot import read_snapshot, write_snapshot

LossOf = Callable[[int], tuple[Tensor, dict[str, Tensor]]]
"""Function from a step (from 0) to the loss and further metrics."""


@dataclass(frozen=True)
class Step:
    """One finished optimizer step."""

    done: int
    """Number of finished steps, this one included."""
    loss: Tensor
    """Loss of the weights before the step."""
    metrics: dict[str, Tensor]
    """Further metrics from `loss_of`."""
    gradient_norm: Tensor
    """Gradient norm before clipping."""
    learning_rate: float
    """Learning rate of the schedule."""


def take_steps(
    optimizer: torch.optim.Optimizer,
    loss_of: LossOf,
    steps: Iterable[int],
    *,
    learning_rate: Callable[[int], float],
    clip: float,
    name: str = "the training",
) -> Iterator[Step]:
    """Takes one optimizer step for each of `steps`, with gradients clipped at norm `clip` and kept until the next step.

    A parameter group's learning rate is `learning_rate(step)` times its `scale`, if it has one. ValueError if the
    training diverges, before the weights are changed by it.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        loss, metrics = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not torch.isfinite(norm):
            raise diverged(name, step, f"loss {loss.item():g}, gradient norm {float(norm):g}", rate)
        optimizer.step()
        yield Step(step + 1, loss.detach(), {key: m.detach() for key, m in metrics.items()}, norm, rate)


def diverged(name: str, step: int, how: str, learning_rate: float) -> ValueError:
    """The error for a training whose loss or gradients are no longer finite."""
    return ValueError(f"{name} diverged at step {step}: {how}; lower the learning rate ({learning_rate:g} here)")


@dataclass(frozen=True)
class FitPlan:
    """Number of steps, learning rates and snapshots of a training."""

    num_steps: int
    """Optimizer steps."""
    learning_rate: Callable[[int], float]
    """Function from a step (from 0) to its learning rate."""
    clip: float
    """Largest gradient norm."""
    snapshot: Path
    """Snapshot from which a killed run continues; removed with its folder when everything after the training is
    done."""
    snapshot_every: int
    """Steps between snapshots."""
    fingerprint: str
    """Identifies the training; a snapshot of another one is not continued."""
    log_every: int = 10
    """Steps between points of the curves."""


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: LossOf,
    plan: FitPlan,
    *,
    log: Log,
    after_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Trains `module` in place, from its snapshot if there is one.

    `loss_of` must draw its batch only from the step and torch's global generator: then an interrupted and an
    uninterrupted run reach the same bytes. `after_step(steps_done)` must not draw. ValueError as `take_steps`.
    """
    steps = range(_resume(plan, module, optimizer), plan.num_steps)
    for step in take_steps(optimizer, loss_of, steps, learning_rate=plan.learning_rate, clip=plan.clip):
        if step.done % plan.log_every == 0 or step.done == plan.num_steps:
            values = {"loss": step.loss, **step.metrics, "gradient_norm": step.gradient_norm}
            log({k: float(v) for k, v in values.items()} | {"learning_rate": step.learning_rate}, step.done)
        after_step(step.done)
        if step.done % plan.snapshot_every == 0 or step.done == plan.num_steps:
            record = {"fingerprint": plan.fingerprint, "step": step.done}
            write_snapshot(plan.snapshot, record, module, optimizer, random={"torch": torch.get_rng_state()})


def _resume(plan: FitPlan, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores the snapshot and returns its number of steps; 0, without changes, if there is none of this training."""
    if not plan.snapshot.is_file():
        return 0
    snapshot = read_snapshot(plan.snapshot)
    if snapshot.record.get("fingerprint") != plan.fingerprint:
        return 0
    snapshot.restore(module, optimizer)
    torch.set_rng_state(snapshot.part("random")["torch"])
    return int(snapshot.record["step"])


def one_cycle(step: int, num_steps: int, *, peak: float, warmup: float = 0.1, final: float = 0.02) -> float:
    """Linear from peak/25 to `peak` over the first `warmup` share of the steps, then a cosine down to final * peak.

    After Smith's one-cycle policy (arXiv 1708.07120); `step` counts from 0.
    """
    rise = max(1.0, warmup * num_steps)
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    through = min(1.0, (step - rise) / max(1.0, num_steps - 1 - rise))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through)))


@settings
class Training:
    """Settings of a checkpoint's training, whatever it learns."""

    steps: Count = 200
    """Optimizer steps."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW, in a one-cycle schedule."""
    clip: Positive = 1.0
    """Largest gradient norm."""
    snapshot_every: Count = 25
    """Steps between snapshots."""

    def plan(self, work_dir: Path, *, name: str) -> FitPlan:
        """The plan for `fit`, with its snapshot in `work_dir`; `name` describes what else the training depends on."""
        return FitPlan(
            num_steps=self.steps,
            learning_rate=lambda step: one_cycle(step, self.steps, peak=self.learning_rate),
            clip=self.clip,
            snapshot=work_dir / "snapshot.safetensors",
            snapshot_every=self.snapshot_every,
            fingerprint=f"{name} {self}",
        )

    def is_due(self, every: int, done: int) -> bool:
        """Whether a curve with a point every `every` steps has one after `done` steps; the last step always has one."""
        return done % every == 0 or done == self.steps
