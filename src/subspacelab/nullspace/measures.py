"""What a LoRA-shaped layer y = A (B x) + W_res x does to its inputs, in norms.

B [r in] is the down-projection (PEFT's lora_A), A [out r] the up-projection (lora_B). Everything is float64: a null
space shows in the small numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ORTHONORMAL = 1e-5  # largest entry of |B B^T - I|: float32 storage leaves 1e-7, bfloat16 4e-3


@dataclass(frozen=True)
class TokenNorms:
    """Means over tokens of the Euclidean norms along one layer; its bias is left out."""

    X_norm: float
    """mean ||x||."""
    BX_norm: float
    """mean ||B x||."""
    ABX_norm: float
    """mean ||A B x||: the adapter's own output."""
    ResidualX_norm: float
    """mean ||W_res x||."""
    FullOutput_norm: float
    """mean ||W_res x + A B x||."""


@dataclass(frozen=True)
class NullRatios:
    """Two ratios of ||Q x|| to ||x||; one token of huge norm moves the first and leaves the second."""

    mean: float
    """mean ||Q x|| / mean ||x||."""
    median: float
    """median of ||Q x|| / ||x||."""


@dataclass(frozen=True)
class UpdateBound:
    """Both sides of ||dW X||_F / ||X||_F <= ||A - A_0||_2 ||B X||_F / ||X||_F, which holds while B is frozen."""

    left: float
    """||dW X||_F / ||X||_F, with dW from the weights that the layer really uses."""
    right: float
    """||A - A_0||_2 ||B X||_F / ||X||_F."""


def token_norms(
    x: Float[Tensor, "tokens in"],
    a: Float[Tensor, "out r"],
    b: Float[Tensor, "r in"],
    residual: Float[Tensor, "out in"],
) -> TokenNorms:
    """The five activation norms of one layer."""
    x, a, b = x.double(), a.double(), b.double()
    down = x @ b.T
    up, rest = down @ a.T, x @ residual.double().T
    return TokenNorms(*(mean_norm(v) for v in (x, down, up, rest, up + rest)))


def mean_norm(x: Float[Tensor, "tokens dim"]) -> float:
    """mean ||x|| over the tokens, in float64."""
    return float(x.double().norm(dim=1).mean())


def is_orthonormal(b: Float[Tensor, "r in"]) -> bool:
    """Whether B B^T = I up to the rounding of float32 storage."""
    b = b.double()
    difference = b @ b.T - torch.eye(len(b), dtype=b.dtype, device=b.device)
    return bool(difference.abs().max() < ORTHONORMAL)


def null_ratios(x: Float[Tensor, "tokens in"], basis: Float[Tensor, "k in"]) -> NullRatios:
    """How much of X lies in the span of orthonormal rows Q. Raises ValueError when X is zero."""
    x = x.double()
    inside, whole = (x @ basis.double().T).norm(dim=1), x.norm(dim=1)
    if not whole.any():
        raise ValueError(f"all {len(x)} inputs are zero, so that no ratio to them exists; verify on other data")
    single = inside[whole > 0] / whole[whole > 0]
    return NullRatios(float(inside.mean() / whole.mean()), float(single.median()))


def update_bound(
    x: Float[Tensor, "tokens in"],
    update: Float[Tensor, "out in"],
    a_change: Float[Tensor, "out r"],
    b: Float[Tensor, "r in"],
) -> UpdateBound:
    """What an update does to X, beside the most that (A - A_0) B with this B could do.

    ||(A - A_0) B X||_F <= ||A - A_0||_2 ||B X||_F. `update` comes from elsewhere than its factors, so that a moved B
    or a residual that does not fit its base breaks the bound.
    """
    x = x.double()
    whole = x.norm().clamp_min(torch.finfo(x.dtype).tiny)  # 0 / 0 is 0
    most = torch.linalg.matrix_norm(a_change.double(), 2) * (x @ b.double().T).norm()
    return UpdateBound(float((x @ update.double().T).norm() / whole), float(most / whole))
