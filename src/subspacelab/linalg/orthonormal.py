"""Random orthonormal bases."""

import torch
from jaxtyping import Float
from torch import Tensor


def random_orthonormal(
    m: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "m k"]:
    """`k` orthonormal columns in R^m, uniform under rotations (Haar): Q of a Gaussian matrix, diag(R) > 0.

    Without the sign fix Householder's convention would bias the columns (Mezzadri, math-ph/0609050).
    Raises ValueError when `k > m`.
    """
    if not 0 < k <= m:
        raise ValueError(f"cannot draw k = {k} orthonormal columns in dimension m = {m}: choose 1 <= k <= {m}")
    gaussian = torch.randn(m, k, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(gaussian)
    fixed: Tensor = q * r.diagonal().sgn()
    return fixed.to(dtype)
