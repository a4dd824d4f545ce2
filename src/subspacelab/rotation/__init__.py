"""How training rotates the singular directions of weights, compared with random updates of equal norm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
