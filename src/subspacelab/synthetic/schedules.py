"""What the synthetic trainings set alike: how long, how fast, how often to save and to look."""

from dataclasses import dataclass
from pathlib import Path

from subspacelab.core.settings import require_at_least, require_positive
from subspacelab.training.fit import FitPlan, one_cycle


@dataclass(frozen=True)
class Training:
    """How a checkpoint is trained, whatever it learns."""

    steps: int = 200
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Peak of the one-cycle schedule, AdamW's."""
    clip: float = 1.0
    """Largest gradient norm."""
    snapshot_every: int = 25
    """Steps between snapshots."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "steps", "snapshot_every")
        require_positive(self, "learning_rate", "clip")

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


@dataclass(frozen=True)
class GroundingTraining(Training):
    """How a checkpoint is trained on rendered scenes by Muon and AdamW, and looked at on held-out ones."""

    size: int = 224
    """Pixels per side while training."""
    muon_scale: float = 20.0
    """Muon's learning rate over AdamW's."""
    held_out: int = 128
    """Held-out scenes in the curve of IoU."""
    held_out_every: int = 100
    """Steps between its points."""
    evaluated: int = 512
    """Held-out scenes in the figures of the finished checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "size", "held_out", "held_out_every", "evaluated")
        require_positive(self, "muon_scale")
