"""How near an approximation comes, picture by picture."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Nearness:
    """One value per picture, float64, for X and its approximation Y."""

    cosine: Float[Tensor, " batch"]
    """<X, Y> / (||X|| ||Y||), of the flattened matrices."""
    token_cosine: Float[Tensor, " batch"]
    """Mean over the tokens t of <x_t, y_t> / (||x_t|| ||y_t||); 0 for a token of zeros."""
    mse: Float[Tensor, " batch"]
    """mean((X - Y)^2)."""
    relative_error: Float[Tensor, " batch"]
    """||X - Y||_F / ||X||_F."""
    explained_variance: Float[Tensor, " batch"]
    """1 - ||X - Y||_F^2 / ||X||_F^2, about the origin, as the SVD has it; below 0 it is worse than Y = 0."""


def nearness(x: Float[Tensor, "batch tokens dim"], y: Float[Tensor, "batch tokens dim"]) -> Nearness:
    """Measures in float64: between two methods cosines may differ in the fifth digit only."""
    wide, near = x.double(), y.double()
    flat, other = wide.flatten(1), near.flatten(1)
    difference = (flat - other).square()
    share = difference.sum(1) / flat.square().sum(1)
    cosine, by_token = F.cosine_similarity(flat, other), F.cosine_similarity(wide, near, dim=2).mean(1)
    return Nearness(cosine, by_token, difference.mean(1), share.sqrt(), 1 - share)
