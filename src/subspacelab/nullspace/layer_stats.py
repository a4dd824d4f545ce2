"""The statistics of one layer: from its factors and what goes into it to one row of the statistics file."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.null_space import null_ratio, optimal_ratio, random_ratio, row_space
from subspacelab.models.lora_factors import Factors
from subspacelab.nullspace.activations import Inputs
from subspacelab.nullspace.measures import (
    UpdateBound,
    is_orthonormal,
    mean_norm,
    null_ratios,
    token_norms,
    update_bound,
)
from subspacelab.nullspace.stats import LayerStats

ROUNDING = 4.0  # times eps ||W||_F: W_res + A_0 B_0 = W holds to half a step per entry, twice rounded


@dataclass(frozen=True)
class Layer:
    """A layer with its adapter, as it stands."""

    name: str
    """Module name."""
    factors: Factors
    """A, B and the start that was taken out of W."""
    residual: Float[Tensor, "out in"]
    """W_res."""
    base: Float[Tensor, "out in"]
    """W."""
    down_frozen: bool
    """Whether the method leaves B as it was built."""

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
    """All of one layer; `live` are its inputs in the adapted model, with moments, `base` those in the frozen base.

    ValueError for inputs that are all zero, NaN or infinite, and when the bound is violated: then B, or the base, is
    not what it says it is.
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
        BX_ratio_optimum=optimal_ratio(torch.linalg.eigvalsh(moment), b.shape[0]),
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
    """part / whole, 0 / 0 being 0: what adds nothing to nothing."""
    return part / whole if whole else 0.0
