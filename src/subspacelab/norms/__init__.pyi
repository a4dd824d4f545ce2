from .analysis import analyze
from .massive import massive
from .results import Analysis, Massive

__all__ = ["Analysis", "Massive", "analyze", "massive"]
