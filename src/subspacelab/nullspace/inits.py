"""How each method initialises an adapter on one matrix, what it needs, and which parameters it trains."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.devices import solve
from subspacelab.linalg.null_space import projected_factors
from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.svd import svd
from subspacelab.models.lora_factors import Factors


def zero_start(w: Float[Tensor, "out in"], basis: Float[Tensor, "r in"]) -> Factors:
    """A = 0, B = orthonormal rows of the null basis, W_res = W (arXiv 2503.02659, the variant without projection)."""
    return Factors(torch.zeros(len(w), len(basis)), basis.float().cpu())


def random_rows(w: Float[Tensor, "out in"], rank: int) -> Factors:
    """A = 0, B = orthonormal rows, uniform under rotations, W_res = W; drawn from torch's global generator."""
    basis = random_orthonormal(w.shape[1], rank, torch.default_generator, torch.float32).T.contiguous()
    return Factors(torch.zeros(len(w), rank), basis)


def projected_start(w: Float[Tensor, "out in"], basis: Float[Tensor, "r in"]) -> Factors:
    """A0 B0 = W N N^T with A0 = U sqrt(S), B0 = sqrt(S) V^T, W_res = W - A0 B0; float64, rounded to float32 once."""
    a, b = (factor.float().cpu() for factor in solve(projected_factors, w, basis))
    return Factors(a, b, a, b)


def minor_components(w: Float[Tensor, "out in"], rank: int) -> Factors:
    """A0 = U sqrt(S), B0 = sqrt(S) V^T of the `rank` smallest singular triples of W; inputs are not used."""
    whole = solve(svd, w.detach().float())
    root = whole.S[-rank:].sqrt()
    a, b = (whole.U[:, -rank:] * root).cpu(), (root[:, None] * whole.Vh[-rank:]).cpu()
    return Factors(a, b, a, b)


NullStart = Callable[[Float[Tensor, "out in"], Float[Tensor, "r in"]], Factors]
"""Function from a weight W and the null basis of its inputs to the initial factors."""
WeightStart = Callable[[Float[Tensor, "out in"], int], Factors]
"""Function from a weight W and the rank to the initial factors; it may draw from torch's global generator."""


@dataclass(frozen=True)
class Method:
    """One way to build an adapter."""

    summary: str
    """The initialisation in words."""
    needs_calibration: bool
    """Whether the initialisation depends on calibration inputs."""
    down_frozen: bool
    """Whether B keeps its initial value and only A is trained."""
    moves_weight: bool
    """Whether W_res differs from W at the start; then the rank must not exceed the number of outputs either."""
    null_start: NullStart | None = None
    """Our initialisation from the null basis."""
    weight_start: WeightStart | None = None
    """Our initialisation without inputs."""
    peft_init: bool | str = True
    """PEFT's `init_lora_weights`, for methods with neither of the two above."""
    default_weight_decay: float = 0.0
    """Default weight decay of its training."""


METHODS: dict[str, Method] = {
    "lora_null_v2": Method("A = 0, B the null basis; A trains", True, True, False, zero_start),
    "lora_null_v2_projected": Method("factors of W N N^T; A trains", True, True, True, projected_start),
    "lora_null_v1": Method("factors of W N N^T; A and B train", True, False, True, projected_start),
    "frozen_random": Method(
        "A = 0, B random orthonormal rows; A trains: the freeze without the null space",
        *(False, True, False),
        weight_start=random_rows,
    ),
    "lora": Method("A = 0, B random; both train", False, False, False),
    "lora_decay": Method("lora, trained with weight decay 0.3", False, False, False, default_weight_decay=0.3),
    "pissa": Method("top singular triples of W; both train", False, False, True, peft_init="pissa"),
    "corda": Method("svd(W C) C^-1, its end (kpm); both train", True, False, True, peft_init="corda"),
    "milora": Method("bottom singular triples of W; both train", False, False, True, weight_start=minor_components),
}
"""The methods, the default first."""


def method_of(name: str) -> Method:
    """The method of that name; ValueError, listing all names, if there is none."""
    if name not in METHODS:
        raise ValueError(f"method={name!r}: allowed are {', '.join(METHODS)}")
    return METHODS[name]
