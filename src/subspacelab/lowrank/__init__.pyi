from .architectures import LowRankNet
from .comparison import Comparison, compare
from .config import AllocatorConfig, TrainLowrankConfig
from .extraction import extract
from .features import Features
from .kept_pictures import CachedPicture, read_picture
from .state import LowRankModel
from .training import train
from .visualization import Views, visualize

__all__ = [
    "AllocatorConfig",
    "CachedPicture",
    "Comparison",
    "Features",
    "LowRankModel",
    "LowRankNet",
    "TrainLowrankConfig",
    "Views",
    "compare",
    "extract",
    "read_picture",
    "train",
    "visualize",
]
