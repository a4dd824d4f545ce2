"""How training turns the singular directions of weights, and what a random update of equal norm would do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
