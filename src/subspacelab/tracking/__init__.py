"""Recording of runs: a small Tracker protocol, and its implementation on MLflow."""

from subspacelab.tracking.dvc_files import InputGuard
from subspacelab.tracking.protocol import MemoryTracker, ModelFiles, NullTracker, Tracker
from subspacelab.tracking.runs import mlflow_run, open_run, open_stage_run, ui_command
from subspacelab.tracking.store import main_root, store_uri

__all__ = [
    "InputGuard",
    "MemoryTracker",
    "ModelFiles",
    "NullTracker",
    "Tracker",
    "main_root",
    "mlflow_run",
    "open_run",
    "open_stage_run",
    "store_uri",
    "ui_command",
]
