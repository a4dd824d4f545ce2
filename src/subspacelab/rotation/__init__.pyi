from .application import Applied, apply
from .auditing import Audit, audit
from .comparison import Comparison, compare
from .decomposition import decompose
from .extraction import Extracted, extract
from .factors import Decomposition

__all__ = [
    "Applied",
    "Audit",
    "Comparison",
    "Decomposition",
    "Extracted",
    "apply",
    "audit",
    "compare",
    "decompose",
    "extract",
]
