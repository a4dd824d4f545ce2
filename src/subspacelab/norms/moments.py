"""Statistics of weights in float64, by chunks of rows; how a table is cut changes them only by rounding."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_ENTRIES = 1 << 15
"""Entries per block on the CPU: 256 kB in float64 stay in the cache, and operations on them run in one thread."""


@dataclass(frozen=True)
class Moments:
    """Moments of a set of numbers."""

    mean: float
    """Arithmetic mean."""
    abs_mean: float
    """Mean of the absolute values."""
    std: float
    """Population standard deviation, sqrt(mean((x - mean)^2)); 0 for a single number."""
    min: float
    """Smallest."""
    max: float
    """Largest."""
    count: int
    """Number of values."""


@dataclass(frozen=True)
class VectorStatistics:
    """Statistics of the vectors of an embedding."""

    norms: Float[Tensor, " vectors"]
    """L2 norm of every vector, float64, on the CPU."""
    weights: Moments
    """Moments of all entries."""


def moments(x: Float[Tensor, "*shape"]) -> Moments:
    """Mean, mean of |x|, deviation, extremes and count of all entries, in float64; ValueError if there are none."""
    if x.numel() == 0:
        raise ValueError(f"shape {list(x.shape)} has no entries to take statistics of; leave it out")
    values = x.detach().reshape(-1).double()
    variance, mean = torch.var_mean(values, correction=0)
    # The 1-norm is the sum of |x| without a copy of x.
    abs_mean = torch.linalg.vector_norm(values, ord=1) / values.numel()
    low, high = torch.aminmax(values)
    return Moments(float(mean), float(abs_mean), math.sqrt(float(variance)), float(low), float(high), values.numel())


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets, by the pairwise update of Chan, Golub and LeVeque (1979)."""
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


def measure_vectors(chunks: Iterable[Float[Tensor, "rows width"]], num_vectors: int) -> VectorStatistics:
    """Norms of all `num_vectors` rows of the chunks and moments of all entries, in float64, a block of rows at a time.

    NaN or infinity appears in the norm of its row. ValueError if there are no rows.
    """
    # One result from the start: small ones kept while chunks come and go would leave holes too small for a chunk.
    norms = torch.empty(num_vectors, dtype=torch.float64)
    total: Moments | None = None
    done = 0
    for chunk in chunks:
        for block in _blocks(chunk):
            rows = block.double()
            lengths = torch.linalg.vector_norm(rows, dim=1)
            norms[done : done + len(rows)] = lengths
            done += len(rows)
            part = moments(rows)
            total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("an embedding of no vectors; leave it out")
    assert done == num_vectors, f"{done} rows, expected {num_vectors}"
    return VectorStatistics(norms, total)


def _blocks(chunk: Float[Tensor, "rows width"]) -> Sequence[Float[Tensor, "block width"]]:
    """The chunk in blocks of rows; undivided on a GPU."""
    if chunk.device.type != "cpu":
        return [chunk]
    return chunk.split(max(1, BLOCK_ENTRIES // max(1, chunk.shape[1])))
