"""What the synthetic trainings set alike: how long, how fast, how often to save and to look."""

from pathlib import Path

from subspacelab.core.settings import Count, Positive, settings
from subspacelab.training.fit import FitPlan, one_cycle


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

    def plan(self, snapshot: Path, *, name: str) -> FitPlan:
        """The plan of `fit`; `name` says what else the training depends on, so that a snapshot is continued by it."""
        return FitPlan(
            num_steps=self.steps,
            learning_rate=lambda step: one_cycle(step, self.steps, peak=self.learning_rate),
            clip=self.clip,
            snapshot=snapshot,
            snapshot_every=self.snapshot_every,
            fingerprint=f"{name} {self}",
        )

    def is_due(self, every: int, done: int) -> bool:
        """Whether a curve with a point every `every` steps has one after `done` of them: the last step has, too."""
        return done % every == 0 or done == self.steps


@settings
class GroundingTraining(Training):
    """How a checkpoint is trained on rendered scenes by Muon and AdamW, and looked at on held-out ones."""

    size: Count = 224
    """Pixels per side while training."""
    muon_scale: Positive = 20.0
    """Muon's learning rate over AdamW's."""
    held_out: Count = 128
    """Held-out scenes in the curve of IoU."""
    held_out_every: Count = 100
    """Steps between its points."""
    evaluated: Count = 512
    """Held-out scenes in the figures of the finished checkpoint."""
