from .building import Built, build_adapter
from .config import BuildSettings, TrainSettings

__all__ = ["BuildSettings", "Built", "TrainSettings", "build_adapter"]
