"""The low-rank structure of model weights, vision features and adapters: rotation, lowrank, nullspace, norms.

Names are imported on first use: `import subspacelab` loads neither torch nor transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
