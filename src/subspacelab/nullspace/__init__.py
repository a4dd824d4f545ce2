"""Adapters in the null space of what a model has learned: calibrate, add or build, train, verify."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
