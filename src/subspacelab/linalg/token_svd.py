"""Truncated SVD of many token matrices at once, and the range of a matrix by a sketch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def sketch_basis(
    x: Float[Tensor, "batch tokens dim"], omega: Float[Tensor, "dim k"], power_steps: int
) -> Float[Tensor, "batch tokens k"]:
    """Orthonormal Q = orth((X X^T)^q X Omega), k <= min(tokens, dim); orthonormalised after every step.

    Halko, Martinsson & Tropp (arXiv 0909.4061), algorithm 4.4. Differentiable in `omega`, so that it can be trained
    (Indyk, Vakilian & Yuan, arXiv 1910.13984).
    """
    q = torch.linalg.qr(x @ omega).Q
    for _ in range(power_steps):
        q = torch.linalg.qr(x @ (x.mT @ q)).Q
    return q


@dataclass(frozen=True)
class TokenSVD:
    """The left factors of X = U S V^T for each X [tokens, dim] of a batch."""

    U: Float[Tensor, "batch tokens tokens"]
    """Left singular vectors as columns, float64, strongest first."""
    energies: Float[Tensor, "batch tokens"]
    """Squared singular values, descending, float64; values beyond the rank of X are rounding, clamped at 0."""

    def cosines(self) -> Float[Tensor, "batch tokens"]:
        """cos(X, X_r) of the flattened matrices for r = 1 ... tokens: ||X_r||_F / ||X||_F, the best for any rank r.

        Eckart & Young 1936: X_r is the projection of X on the leading r vectors, so <X, X_r> = ||X_r||^2. 1 for X = 0.
        """
        total = self.energies.sum(-1, keepdim=True)
        share = self.energies.cumsum(-1) / total.clamp_min(torch.finfo(total.dtype).tiny)
        return torch.where(total > 0, share, torch.ones_like(share)).clamp_max(1).sqrt()


def token_svd(x: Float[Tensor, "batch tokens dim"]) -> TokenSVD:
    """Eigenvectors and eigenvalues of X X^T [tokens, tokens] in float64.

    Squaring loses directions below sqrt(eps) = 1e-8 of the largest singular value, which carry 1e-16 of the energy.
    """
    wide = x.double()
    energies, u = torch.linalg.eigh(wide @ wide.mT)
    return TokenSVD(u.flip(-1), energies.flip(-1).clamp_min(0))


def project(
    x: Float[Tensor, "batch tokens dim"], basis: Float[Tensor, "batch tokens k"]
) -> Float[Tensor, "batch tokens dim"]:
    """Q Q^T X for a basis Q of orthonormal columns, in the dtype of X."""
    projected: Tensor = basis @ (basis.mT @ x.to(basis.dtype))
    return projected
