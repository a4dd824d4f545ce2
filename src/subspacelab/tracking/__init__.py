"""Recording of runs: a small Tracker protocol, and one module behind it that knows MLflow."""

from subspacelab.tracking.guard import InputGuard
from subspacelab.tracking.memory import MemoryTracker
from subspacelab.tracking.null import NullTracker
from subspacelab.tracking.protocol import ModelFiles, Tracker
from subspacelab.tracking.runs import open_run, open_stage_run
from subspacelab.tracking.store import main_root, store_uri
from subspacelab.tracking.ui import ui_command

__all__ = [
    "InputGuard",
    "MemoryTracker",
    "ModelFiles",
    "NullTracker",
    "Tracker",
    "main_root",
    "open_run",
    "open_stage_run",
    "store_uri",
    "ui_command",
]
