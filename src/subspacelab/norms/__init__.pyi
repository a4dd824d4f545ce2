from .analysis import analyze
from .results import Analysis

__all__ = ["Analysis", "analyze"]
