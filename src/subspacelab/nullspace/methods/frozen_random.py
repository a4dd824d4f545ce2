"""The control of the null-space methods: as frozen as theirs, a B that knows nothing of the inputs."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.orthonormal import random_orthonormal
from subspacelab.models.lora_factors import Factors


def random_rows(w: Float[Tensor, "out in"], rank: int) -> Factors:
    """A = 0, B = orthonormal rows, uniform under rotations, W_res = W; drawn from torch's global generator."""
    basis = random_orthonormal(w.shape[1], rank, torch.default_generator, torch.float32).T.contiguous()
    return Factors(torch.zeros(len(w), rank), basis)
