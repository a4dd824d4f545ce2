"""What the trainings on rendered scenes set alike."""

from dataclasses import dataclass

from subspacelab.core.settings import require_at_least, require_positive
from subspacelab.training.schedules import Training


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
