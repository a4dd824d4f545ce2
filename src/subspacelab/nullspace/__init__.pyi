from .building import Built, build_adapter
from .config import BuildSettings, KnowledgeSettings, TrainSettings, VerifyAdapterConfig
from .live import Calibration, add_adapter, calibrate, verify
from .results import Verification
from .training import TrainedAdapter, train_adapter
from .verification import verify_adapter

__all__ = [
    "BuildSettings",
    "Built",
    "Calibration",
    "KnowledgeSettings",
    "TrainSettings",
    "TrainedAdapter",
    "Verification",
    "VerifyAdapterConfig",
    "add_adapter",
    "build_adapter",
    "calibrate",
    "train_adapter",
    "verify",
    "verify_adapter",
]
