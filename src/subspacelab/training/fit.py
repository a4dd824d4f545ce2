"""The loop that every training runs: schedule, clipping, curves, snapshots."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from subspacelab.training.snapshot import resume_snapshot, write_snapshot


def one_cycle(step: int, num_steps: int, *, peak: float, warmup: float = 0.1, final: float = 0.02) -> float:
    """Linear from peak/25 to `peak` over the first `warmup` share of the steps, then a cosine down to final * peak.

    After Smith's one-cycle policy (arXiv 1708.07120); `step` counts from 0.
    """
    rise = max(1.0, warmup * num_steps)
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    through = min(1.0, (step - rise) / max(1.0, num_steps - 1 - rise))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through)))


Log = Callable[[Mapping[str, float], int], None]
"""log(metrics, step): training code never asks whether anybody listens."""


@dataclass(frozen=True)
class FitPlan:
    """How long, how fast, and how often to save."""

    num_steps: int
    """Optimizer steps."""
    learning_rate: Callable[[int], float]
    """Step (from 0) to learning rate."""
    clip: float
    """Largest gradient norm."""
    snapshot: Path
    """Where a killed run continues from; it goes with its folder, once all that follows the training is done."""
    snapshot_every: int
    """Steps between snapshots."""
    fingerprint: str
    """Names the training; a snapshot of another one is not continued."""
    log_every: int = 10
    """Steps between points of the curves."""


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    plan: FitPlan,
    *,
    log: Log,
    after_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Trains `module` in place, from its snapshot if there is one.

    `loss_of(step)` returns the loss and what else to plot. It must draw its batch from `step` and from torch's global
    generator only: then a broken and an unbroken run reach the same bytes. `after_step(steps_done)` must not draw.
    Raises ValueError when the training diverges, before the weights are touched by it.
    """
    first = resume_snapshot(plan.snapshot, module=module, optimizer=optimizer, fingerprint=plan.fingerprint)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate(step) * group.get("scale", 1.0)
        loss, curves = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, plan.clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"the training diverged at step {step}: loss {loss.item():g}, gradient norm {float(norm):g};"
                f" lower learning_rate ({plan.learning_rate(step):g} here)"
            )
        optimizer.step()
        done = step + 1
        if done % plan.log_every == 0 or done == plan.num_steps:
            values = {"loss": loss, **curves, "gradient_norm": norm}
            log({k: float(v.detach()) for k, v in values.items()} | {"learning_rate": plan.learning_rate(step)}, done)
        after_step(done)
        if done % plan.snapshot_every == 0 or done == plan.num_steps:
            write_snapshot(plan.snapshot, step=done, module=module, optimizer=optimizer, fingerprint=plan.fingerprint)
