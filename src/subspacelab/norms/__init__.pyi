from .activations import massive
from .analysis import analyze
from .results import Analysis, Massive

__all__ = ["Analysis", "Massive", "analyze", "massive"]
