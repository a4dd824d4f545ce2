from .auditing import Audit, audit
from .comparison import Comparison, compare
from .decomposition import decompose
from .factors import Decomposition

__all__ = ["Audit", "Comparison", "Decomposition", "audit", "compare", "decompose"]
