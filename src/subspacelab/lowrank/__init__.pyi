from .architectures import LowRankNet
from .comparison import Comparison, compare
from .config import AllocatorConfig, TrainLowrankConfig
from .extraction import extract
from .features import Features
from .state import LowRankModel
from .training import train
from .visualization import Views, visualize

__all__ = [
    "AllocatorConfig",
    "Comparison",
    "Features",
    "LowRankModel",
    "LowRankNet",
    "TrainLowrankConfig",
    "Views",
    "compare",
    "extract",
    "train",
    "visualize",
]
