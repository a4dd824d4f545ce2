"""Statistics of weights in float64, by chunks of rows: the same to rounding however a table is cut."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of a set of numbers."""

    mean: float
    """Arithmetic mean."""
    abs_mean: float
    """Mean of the absolute values."""
    std: float
    """Standard deviation of the population, sqrt(mean((x - mean)^2)): 0 for a single number."""
    min: float
    """Smallest."""
    max: float
    """Largest."""
    count: int
    """How many."""


@dataclass(frozen=True)
class VectorStatistics:
    """Of the vectors of an embedding."""

    norms: Float[Tensor, " vectors"]
    """L2 norm of every vector, float64, on the CPU."""
    weights: Moments
    """Of all entries."""


def moments(x: Float[Tensor, "*shape"]) -> Moments:
    """Mean, mean of |x|, deviation, extremes and count of all entries, in float64; ValueError for none."""
    if x.numel() == 0:
        raise ValueError(f"shape {list(x.shape)} has no entries to take statistics of; leave it out")
    values = x.detach().reshape(-1).double()
    variance, mean = torch.var_mean(values, correction=0)
    # The 1-norm is the sum of |x| without a copy of x.
    abs_mean = torch.linalg.vector_norm(values, ord=1) / values.numel()
    low, high = torch.aminmax(values)
    return Moments(float(mean), float(abs_mean), math.sqrt(float(variance)), float(low), float(high), values.numel())


def merge(a: Moments, b: Moments) -> Moments:
    """Of two disjoint sets together, by the pairwise update of Chan, Golub and LeVeque (1979)."""
    count = a.count + b.count
    share = b.count / count
    delta = b.mean - a.mean
    variance = (1 - share) * a.std**2 + share * b.std**2 + share * (1 - share) * delta**2
    return Moments(
        a.mean + share * delta,
        (1 - share) * a.abs_mean + share * b.abs_mean,
        math.sqrt(variance),
        min(a.min, b.min),
        max(a.max, b.max),
        count,
    )


def measure_vectors(chunks: Iterable[Float[Tensor, "rows width"]]) -> VectorStatistics:
    """Norms of all rows of all chunks and moments of all entries; one chunk at a time is held, in float64."""
    norms: list[Tensor] = []
    total: Moments | None = None
    for chunk in chunks:
        rows = chunk.double()
        norms.append(torch.linalg.vector_norm(rows, dim=1).cpu())
        part = moments(rows)
        total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("an embedding of no vectors; leave it out")
    return VectorStatistics(torch.cat(norms), total)
