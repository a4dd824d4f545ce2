"""Weak singular directions, resolved from their own product where the Gram matrix has lost them."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows


def resolve_tail(
    weak: Float[Tensor, "m t"], strong: Float[Tensor, "m h"], noise: float
) -> tuple[Float[Tensor, "m t"], Float[Tensor, " t"], Float[Tensor, "t t"]]:
    """SVD of `weak` = A V_t inside the complement of the strong left vectors: (U_t, S_t, R), V_t R the right ones.

    A V_t carries the tail to eps s_1, where the Gram matrix has it to sqrt(eps) s_1 only. Columns below `noise`
    point nowhere: random ones (seeded) complete the basis, and keep whatever singular value the product gives them.
    """
    q = _orthonormal_outside(strong, _directions(weak, noise))
    p, s, rh = torch.linalg.svd(q.T @ weak)
    return q @ p, s, rh.T


def _directions(weak: Float[Tensor, "m t"], noise: float) -> Float[Tensor, "m t"]:
    norms = torch.linalg.vector_norm(weak, dim=0)
    random = torch.randn(weak.shape, generator=torch.Generator().manual_seed(0), dtype=weak.dtype)
    return torch.where(norms > noise, weak / norms, random.to(weak.device))


def _orthonormal_outside(strong: Float[Tensor, "m h"], q: Float[Tensor, "m t"]) -> Float[Tensor, "m t"]:
    """Orthonormal columns in the span of `q` made orthogonal to `strong`; twice, as one pass leaves rounding behind."""
    rows = chunk_rows(strong)
    for _ in range(2):
        overlap = q.new_zeros(strong.shape[1], q.shape[1])
        for basis, part in zip(strong.split(rows), q.split(rows), strict=True):
            overlap.addmm_(basis.double().T, part)
        for basis, part in zip(strong.split(rows), q.split(rows), strict=True):
            part.addmm_(basis.double(), overlap, alpha=-1)
        q = torch.linalg.qr(q).Q
    return q
