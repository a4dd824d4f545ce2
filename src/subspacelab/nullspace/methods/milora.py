"""MiLoRA (arXiv 2406.09044): the minor singular components of W become the adapter."""

from jaxtyping import Float
from torch import Tensor

from subspacelab.devices import solve
from subspacelab.linalg.svd import svd
from subspacelab.models.lora_factors import Factors


def minor_components(w: Float[Tensor, "out in"], rank: int) -> Factors:
    """A0 = U sqrt(S), B0 = sqrt(S) V^T of the `rank` smallest singular triples of W; no input is looked at."""
    whole = solve(svd, w.detach().float())
    root = whole.S[-rank:].sqrt()
    a, b = (whole.U[:, -rank:] * root).cpu(), (root[:, None] * whole.Vh[-rank:]).cpu()
    return Factors(a, b, a, b)
