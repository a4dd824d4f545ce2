from . import lowrank, norms, nullspace, rotation, tracking
from .checkpoints import Checkpoint, open_checkpoint
from .core.errors import CheckpointError, SettingError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "SettingError",
    "lowrank",
    "norms",
    "nullspace",
    "open_checkpoint",
    "rotation",
    "tracking",
]
