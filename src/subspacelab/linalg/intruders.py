"""Intruder dimensions: leading singular vectors that a fine-tuned weight has and its base has not."""

from jaxtyping import Float
from torch import Tensor


def intruder_dimensions(ua: Float[Tensor, "m ra"], ub: Float[Tensor, "m rb"], k: int = 10, eps: float = 0.5) -> int:
    """Number of j <= k with max_i |<ub_j, ua_i>| < eps (2410.21228, definition 3.1).

    `ua`, `ub`: singular vectors of the base and of the tuned weight as columns, descending singular values.
    Where k exceeds the columns of `ub`, all of them are looked at.
    """
    overlap = (ua.double().T @ ub[:, :k].double()).abs()
    return int((overlap.amax(dim=0) < eps).sum())
