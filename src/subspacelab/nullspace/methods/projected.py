"""LoRA-Null as the paper starts it (arXiv 2503.02659): the part of W in the null space becomes the adapter."""

from jaxtyping import Float
from torch import Tensor

from subspacelab.devices import solve
from subspacelab.linalg.null_space import projected_factors
from subspacelab.models.lora_factors import Factors


def projected_start(w: Float[Tensor, "out in"], basis: Float[Tensor, "r in"]) -> Factors:
    """A0 B0 = W N N^T with A0 = U sqrt(S), B0 = sqrt(S) V^T, W_res = W - A0 B0; float64, rounded to float32 once."""
    a, b = (factor.float().cpu() for factor in solve(projected_factors, w, basis))
    return Factors(a, b, a, b)
