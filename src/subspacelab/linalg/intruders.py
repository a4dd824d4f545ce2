"""Intruder dimensions: leading singular vectors that a fine-tuned weight has and its base has not."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows


def intruder_dimensions(ua: Float[Tensor, "m ra"], ub: Float[Tensor, "m rb"], k: int = 10, eps: float = 0.5) -> int:
    """Number of j <= k with max_i |<ub_j, ua_i>| < eps (2410.21228, definition 3.1).

    `ua`, `ub`: singular vectors of the base and of the tuned weight as columns, descending singular values.
    Where k exceeds the columns of `ub`, all of them are looked at. Streamed in row chunks: an embedding's `ua` in
    float64 would be gigabytes.
    """
    rows, leading = chunk_rows(ua), ub[:, :k]
    overlap = ua.new_zeros(ua.shape[1], leading.shape[1], dtype=torch.float64)
    for a, b in zip(ua.split(rows), leading.split(rows), strict=True):
        overlap.addmm_(a.double().T, b.double())
    return int((overlap.abs().amax(dim=0) < eps).sum())
