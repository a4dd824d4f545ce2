"""ResMLP and MLP, one network over tokens for A, one over features for B; Sketch, the range of X by a projection."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.linalg.token_svd import sketch_basis
from subspacelab.lowrank.architectures.linear import Linear, linear

LEVELS = 1 << 16  # a draw of 64 bits decides four entries, each with a probability of 1/65536 precision


class ReluDropout(nn.Module):
    """dropout(relu(x)) while training, relu(x) otherwise; entries are drawn from torch's global generator."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return F.relu(x)
        if x.device.type != "cpu":
            return F.dropout(F.relu(x), self.dropout)
        kept: Tensor = _Keep.apply(x, self.dropout)
        return kept


class _Keep(torch.autograd.Function):
    """x / (1 - p) where x > 0 and a draw says so, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        # One tensor, changed in place: fresh ones cost more than the arithmetic, and a choice by booleans thrice it.
        kept = levels.to(x.dtype).ge_(round(p * LEVELS) - LEVELS // 2).mul_(1 / (1 - p)).mul_(x).clamp_min_(0)
        ctx.save_for_backward(kept)  # the next layer keeps it too: no mask is held
        ctx.scale = 1 / (1 - p)
        return kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.threshold_backward(gradient, kept, 0.0)
        return passed.mul_(ctx.scale), None


class Factors(NamedTuple):
    """X is approximately A @ B."""

    A: Float[Tensor, "batch tokens rank"]
    """One row per token."""
    B: Float[Tensor, "*batch rank dim"]
    """One column per feature; without a batch where all pictures share it."""


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
        """Starts both shortcuts at `basis`, and the networks at zero."""
        if self.P is None or self.Q is None:
            raise ValueError("start: 'pca' needs the shortcuts; use start: random")
        self.P.copy_(basis)
        self.Q.copy_(basis)
        for network in (self.rows, self.columns):
            silence(network)


def silence(network: nn.Sequential) -> None:
    """Sets the last linear layer to zero, so that the untrained network outputs 0."""
    last: Any = network[-1]
    last.weight.zero_()
    last.bias.zero_()
    if hasattr(last, "lora_B"):  # the delta of an SVDLinear
        last.lora_B.zero_()


ROW_WIDTHS = (1024, 256)
COLUMN_WIDTHS = (512, 256)


class MLP(FactorNet):
    """Row network dim-1024-256-rank, column network tokens-512-256-rank; ReLU and dropout between."""

    def __init__(self, tokens: int, dim: int, rank: int, *, dropout: float, shortcut: bool) -> None:
        rows = plain_stack((dim, *ROW_WIDTHS, rank), dropout)
        columns = plain_stack((tokens, *COLUMN_WIDTHS, rank), dropout)
        super().__init__(rows, columns, dim, rank, shortcut=shortcut)


def plain_stack(
    widths: Sequence[int], dropout: float, linear: Callable[[int, int], nn.Module] = Linear
) -> nn.Sequential:
    """Layers of the given widths, ReLU and dropout after all but the last."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        if i:
            layers.append(ReluDropout(dropout))
        layers.append(linear(before, after))
    return nn.Sequential(*layers)


WIDTH, DEPTH = 256, 2


class ResMLP(FactorNet):
    """Row network over tokens, column network over features: linear to 256, two residual blocks, linear to rank."""

    def __init__(self, tokens: int, dim: int, rank: int, *, dropout: float, shortcut: bool) -> None:
        rows, columns = (ResidualStack(width, rank, dropout) for width in (dim, tokens))
        super().__init__(rows, columns, dim, rank, shortcut=shortcut)


class ResidualStack(nn.Sequential):
    """Linear to `WIDTH`, `DEPTH` residual blocks, layer norm, linear to `after`."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        blocks = [ResidualBlock(WIDTH, dropout) for _ in range(DEPTH)]
        super().__init__(Linear(before, WIDTH), *blocks, nn.LayerNorm(WIDTH), Linear(WIDTH, after))


class ResidualBlock(nn.Module):
    """x + dropout(relu(linear(layer_norm(x))))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.linear, self.active = nn.LayerNorm(width), Linear(width, width), ReluDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.active(self.linear(self.norm(x)))
        return x + changed


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
