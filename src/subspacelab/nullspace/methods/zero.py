"""LoRA-Null v2 as this project means it: nothing moves at the start."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.models.lora_factors import Factors


def zero_start(w: Float[Tensor, "out in"], basis: Float[Tensor, "r in"]) -> Factors:
    """A = 0, B = the null basis' orthonormal rows, W_res = W (arXiv 2503.02659, the variant without projection)."""
    return Factors(torch.zeros(len(w), len(basis)), basis.float().cpu())
