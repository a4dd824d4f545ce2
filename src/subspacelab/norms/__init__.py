"""Norms of embedding vectors and parameters of norm layers, read without loading a model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
