"""What ResMLP, MLP and AdaLoRA share: one network over tokens gives A, one over features gives B."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.lowrank.architectures.linear import linear


class Factors(NamedTuple):
    """X is approximately A @ B."""

    A: Float[Tensor, "batch tokens rank"]
    """One row per token."""
    B: Float[Tensor, "batch rank dim"]
    """One column per feature."""


class FactorNet(nn.Module):
    """A = rows(X), B = columns(X^T)^T; with `shortcut`, A += X P and B += Q^T for trained P, Q [dim, rank].

    The column network sees the 256 values of a feature and not which feature it is; Q tells it. With P = Q = V, the
    leading PCA basis of the data set, and silent networks, A B = X V V^T is the best one basis for all pictures:
    there `start_from` begins.
    """

    def __init__(self, rows: nn.Sequential, columns: nn.Sequential, dim: int, rank: int, *, shortcut: bool) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.P = nn.Parameter(torch.randn(dim, rank) / dim**0.5) if shortcut else None
        self.Q = nn.Parameter(torch.randn(dim, rank) / dim**0.5) if shortcut else None

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Factors:
        """The two factors of each X."""
        a, b = self.rows(x), self.columns(x.mT)
        if self.P is not None and self.Q is not None:
            a, b = a + linear(x, self.P.T), b + self.Q
        return Factors(a, b.mT)

    @torch.no_grad()
    def start_from(self, basis: Float[Tensor, "dim rank"]) -> None:
        """Starts both shortcuts at `basis` and the networks at zero."""
        if self.P is None or self.Q is None:
            raise ValueError("start: 'pca' needs the shortcuts; use start: random")
        self.P.copy_(basis)
        self.Q.copy_(basis)
        for network in (self.rows, self.columns):
            silence(network)


def silence(network: nn.Sequential) -> None:
    """Zeroes the last linear layer, so that the network gives 0 until it is trained."""
    last: Any = network[-1]
    last.weight.zero_()
    last.bias.zero_()
    if hasattr(last, "lora_B"):  # the delta of an SVDLinear
        last.lora_B.zero_()
