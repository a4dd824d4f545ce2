"""Similarity of an approximation, and the terms of the training loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Similarity:
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


def similarity(x: Float[Tensor, "batch tokens dim"], y: Float[Tensor, "batch tokens dim"]) -> Similarity:
    """Measures in float64, since the cosines of two methods may differ only in the fifth digit."""
    wide, near = x.double(), y.double()
    flat, other = wide.flatten(1), near.flatten(1)
    difference = (flat - other).square()
    share = difference.sum(1) / flat.square().sum(1)
    cosine, by_token = F.cosine_similarity(flat, other), F.cosine_similarity(wide, near, dim=2).mean(1)
    return Similarity(cosine, by_token, difference.mean(1), share.sqrt(), 1 - share)


def size_of_b(b: Float[Tensor, "batch rank dim"]) -> Float[Tensor, ""]:
    """mean(B^2)."""
    return b.square().mean()


def orthogonality_of_a(a: Float[Tensor, "batch tokens rank"]) -> Float[Tensor, ""]:
    """Mean over the batch of ||A_n^T A_n - I||_F^2 / rank^2, A_n = A with columns of length 1 (0 stays 0)."""
    columns = F.normalize(a, dim=1)
    gram = columns.mT @ columns
    eye = torch.eye(gram.shape[-1], device=a.device, dtype=a.dtype)
    return (gram - eye).square().mean()
