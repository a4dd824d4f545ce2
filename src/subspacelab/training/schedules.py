"""How long and how fast a training is: the settings that all trainings from nothing share, and their schedule."""

import math
from pathlib import Path

from subspacelab.core.settings import Count, Positive, settings
from subspacelab.training.fit import FitPlan


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
    """How a checkpoint is trained, whatever it learns."""

    steps: Count = 200
    """Optimizer steps."""
    learning_rate: Positive = 1e-3
    """Peak of the one-cycle schedule, AdamW's."""
    clip: Positive = 1.0
    """Largest gradient norm."""
    snapshot_every: Count = 25
    """Steps between snapshots."""

    def plan(self, work_dir: Path, *, name: str) -> FitPlan:
        """The plan of `fit`, its snapshot in `work_dir`; `name` says what else the training depends on."""
        return FitPlan(
            num_steps=self.steps,
            learning_rate=lambda step: one_cycle(step, self.steps, peak=self.learning_rate),
            clip=self.clip,
            snapshot=work_dir / "snapshot.safetensors",
            snapshot_every=self.snapshot_every,
            fingerprint=f"{name} {self}",
        )

    def is_due(self, every: int, done: int) -> bool:
        """Whether a curve with a point every `every` steps has one after `done` of them: the last step has, too."""
        return done % every == 0 or done == self.steps
