"""Gram matrices in float64, streamed in row chunks."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ENTRIES = 1 << 22  # entries converted at a time: 32 MiB of float64, small beside any large weight
BLOCK = 256  # columns per block of the triangle: smaller ones save no more, as the product slows down


def chunk_rows(w: Float[Tensor, "m n"]) -> int:
    """Rows of `w` that make a chunk of about `CHUNK_ENTRIES` entries (at least one)."""
    return max(1, CHUNK_ENTRIES // max(1, w.shape[1]))


def gram(
    w: Float[Tensor, "m n"], side: Literal["left", "right"] = "right", device: torch.device | None = None
) -> Float[Tensor, "k k"]:
    """Gram matrix in float64: `W^T W` [n n] for side "right", `W W^T` [m m] for "left".

    Streamed: beside the result only one chunk of `w` is ever converted. Only the upper block triangle is
    multiplied out, the rest mirrored, so the result is exactly symmetric between blocks.
    """
    a = w if side == "right" else w.T
    n = a.shape[1]
    total = torch.zeros(n, n, dtype=torch.float64, device=device or w.device)
    for chunk in a.split(chunk_rows(a)):
        c = chunk.to(total.device).double()
        for i in range(0, n, BLOCK):
            total[i : i + BLOCK, i:].addmm_(c[:, i : i + BLOCK].T, c[:, i:])
    for i in range(BLOCK, n, BLOCK):
        total[i : i + BLOCK, :i] = total[:i, i : i + BLOCK].T
    return total
