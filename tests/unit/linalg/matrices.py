"""Matrices of known singular values for the tests of linalg."""

import torch
from torch import Tensor

from subspacelab.linalg.subspaces import random_orthonormal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(m: int, n: int, s: Tensor, seed: int = 0) -> Tensor:
    """U diag(s) V^T in float64 with Haar-random U [m k] and V [n k], k = len(s)."""
    g = seeded(seed)
    u, v = random_orthonormal(m, len(s), g), random_orthonormal(n, len(s), g)
    return (u * s.double()) @ v.T


def gaussian(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, generator=seeded(seed), dtype=torch.float64)
