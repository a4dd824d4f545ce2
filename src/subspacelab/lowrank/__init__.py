"""Vision features [n, tokens, dim] factorised as A @ B by networks, compared with the SVD optimum and controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
