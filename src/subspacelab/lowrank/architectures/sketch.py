"""Sketch: the range of X by a projection that can be trained, sharpened by power steps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.linalg.token_svd import sketch_basis
from subspacelab.lowrank.architectures.factor_networks import Factors


class Sketch(nn.Module):
    """A = Q = orth((X X^T)^q X Omega), B = Q^T X: the projection of X on the sketched range (arXiv 1910.13984).

    Omega [dim, rank] is trained; it starts at the PCA basis of the training pictures, or at random. What training adds
    is the difference to that start, which `lowrank compare` gives: on the demo at most 1e-5 of a cosine.
    """

    def __init__(self, dim: int, rank: int, *, power_steps: int) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.randn(dim, rank) / dim**0.5)
        self.power_steps = power_steps

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Factors:
        """The two factors of each X; A has orthonormal columns."""
        q = sketch_basis(x, self.omega, self.power_steps)
        return Factors(q, q.mT @ x)

    @torch.no_grad()
    def start_from(self, basis: Float[Tensor, "dim rank"]) -> None:
        """Starts Omega at `basis`."""
        self.omega.copy_(basis)
