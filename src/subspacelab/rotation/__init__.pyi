from .comparison import Comparison, compare
from .decomposition import decompose
from .factors import Decomposition

__all__ = ["Comparison", "Decomposition", "compare", "decompose"]
