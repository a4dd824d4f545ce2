"""Norms of what a LoRA layer y = A (B x) + W_res x does to its inputs.

B [r in] is the down-projection (PEFT's lora_A), A [out r] the up-projection (lora_B). Everything is float64, because a
null space shows in small numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.null_space import null_ratio, optimal_ratio, random_ratio, row_space
from subspacelab.models.lora_factors import Factors
from subspacelab.nullspace.calibration import Inputs
from subspacelab.nullspace.results import LayerStats

ORTHONORMAL = 1e-5  # largest entry of |B B^T - I|: float32 storage leaves 1e-7, bfloat16 4e-3


@dataclass(frozen=True)
class TokenNorms:
    """Means over tokens of the Euclidean norms along one layer, without its bias."""

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
    """Two ratios of ||Q x|| to ||x||; a single token of very large norm changes the first but not the second."""

    mean: float
    """mean ||Q x|| / mean ||x||."""
    median: float
    """median of ||Q x|| / ||x||."""


@dataclass(frozen=True)
class UpdateBound:
    """Both sides of ||dW X||_F / ||X||_F <= ||A - A_0||_2 ||B X||_F / ||X||_F, which holds while B is frozen."""

    left: float
    """||dW X||_F / ||X||_F, with dW from the weights that the layer actually uses."""
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
    """How much of X lies in the span of orthonormal rows Q. ValueError if X is zero."""
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
    """The effect of an update on X, and the largest possible effect of (A - A_0) B with this B.

    ||(A - A_0) B X||_F <= ||A - A_0||_2 ||B X||_F. `update` is not computed from the factors, so that a changed B, or a
    residual that does not fit its base, violates the bound.
    """
    x = x.double()
    whole = x.norm().clamp_min(torch.finfo(x.dtype).tiny)  # 0 / 0 is 0
    most = torch.linalg.matrix_norm(a_change.double(), 2) * (x @ b.double().T).norm()
    return UpdateBound(float((x @ update.double().T).norm() / whole), float(most / whole))


ROUNDING = 4.0  # times eps ||W||_F: W_res + A_0 B_0 = W holds to half a step per entry, twice rounded


@dataclass(frozen=True)
class Layer:
    """A layer with its adapter."""

    name: str
    """Module name."""
    factors: Factors
    """A, B and the start that was subtracted from W."""
    residual: Float[Tensor, "out in"]
    """W_res."""
    base: Float[Tensor, "out in"]
    """W."""
    down_frozen: bool
    """Whether the method keeps B at its initial value."""

    @property
    def update(self) -> Float[Tensor, "out in"]:
        """dW = W_res + A B - W, float64."""
        return self.residual.double() + self.factors.A.double() @ self.factors.B.double() - self.base.double()

    @property
    def a_change(self) -> Float[Tensor, "out r"]:
        """A - A_0, float64."""
        a = self.factors.A.double()
        return a if self.factors.A0 is None else a - self.factors.A0.to(a.device).double()


@torch.no_grad()
def layer_stats(layer: Layer, live: Inputs, base: Inputs, num_tokens: int) -> LayerStats:
    """All statistics of one layer; `live`: its inputs in the adapted model, with moments; `base`: in the frozen base.

    ValueError if inputs are all zero, NaN or infinite, and if the bound is violated, because then B or the base is not
    what its files say.
    """
    f = layer.factors
    b, x, old, moment = f.B, live.sample.to(f.B.device), base.sample.to(f.B.device), live.moment
    assert moment is not None
    if not moment.diagonal().isfinite().all():
        raise ValueError("NaN or infinity among its inputs; the training diverged, or the checkpoint is damaged")
    norms = token_norms(x, f.A, b, layer.residual)
    basis = row_space(b)
    ratios = null_ratios(x, basis)
    bos = _gram(live.first.to(b.device))
    update = layer.update
    bound, base_bound = (_bound(layer, update, inputs) if layer.down_frozen else None for inputs in (x, old))
    return LayerStats(
        layer=layer.name,
        samples=len(x),
        in_features=b.shape[1],
        rank=b.shape[0],
        out_features=f.A.shape[0],
        **vars(norms),
        BX_ratio=null_ratio(moment, basis),
        ABX_ratio=norms.ABX_norm / norms.X_norm,
        adapter_contribution=_share(norms.ABX_norm, norms.FullOutput_norm),
        B_weight_norm=float(b.double().norm()),
        A_weight_norm=float(f.A.double().norm()),
        Residual_weight_norm=float(layer.residual.double().norm()),
        B_orthonormal=is_orthonormal(b),
        BX_ratio_bos=null_ratio(bos, basis),
        BX_ratio_rest=null_ratio(moment - bos, basis),
        BX_ratio_mean_norms=ratios.mean,
        BX_ratio_median=ratios.median,
        BX_ratio_random=random_ratio(*b.shape),
        BX_ratio_optimum=optimal_ratio(live.eigenvalues, b.shape[0]),
        tokens_per_dimension=num_tokens / b.shape[1],
        DeltaX_ratio=mean_norm(x.double() @ update.T) / norms.X_norm,
        base_BX_ratio=base.ratios[layer.name],
        base_DeltaX_ratio=_share(mean_norm(old.double() @ update.T), mean_norm(old)),
        bound_left=bound.left if bound else None,
        bound=bound.right if bound else None,
        base_bound_left=base_bound.left if base_bound else None,
        base_bound=base_bound.right if base_bound else None,
    )


def _bound(layer: Layer, update: Tensor, x: Tensor) -> UpdateBound:
    found = update_bound(x, update, layer.a_change, layer.factors.B)
    allowed = 1e-9 * found.right  # float64 sums; and the rounding of W_res where it is not W
    if layer.factors.A0 is not None:
        allowed += ROUNDING * torch.finfo(layer.residual.dtype).eps * float(layer.base.double().norm())
    if found.left > found.right + allowed:
        raise ValueError(
            f"the change of the weights moves the inputs by {found.left:.3g}, more than ||A - A_0|| ||BX|| / ||X|| ="
            f" {found.right:.3g} allows: B or the base's weights are not those that were built; build again"
        )
    return found


def _gram(x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "dim dim"]:
    return x.double().T @ x.double()


def _share(part: float, whole: float) -> float:
    """part / whole, with 0 / 0 = 0."""
    return part / whole if whole else 0.0
