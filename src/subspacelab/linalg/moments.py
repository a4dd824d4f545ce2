"""Gram matrices and second moments in float64, streamed in blocks."""

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


TOKENS_AT_ONCE = 1024  # columns per block of the triangle; narrower ones slow the product down
CHUNK = 4096  # tokens converted at a time


class SecondMoment:
    """C = sum of x x^T over tokens x; the mean is not taken off, for an adapter must vanish on the mean too.

    float64, because C squares the condition of the activations: float32 sums resolve singular values down to 3e-4 of
    the largest, these down to 1e-8.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.num_tokens = 0
        """Tokens that were added."""
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "tokens dim"]) -> None:
        """Adds tokens, from any device and dtype; only the upper block triangle is multiplied out."""
        width = len(self._sum)
        for chunk in x.split(CHUNK):
            c = chunk.to(self._sum.device).double()
            for i in range(0, width, TOKENS_AT_ONCE):
                self._sum[i : i + TOKENS_AT_ONCE, i:].addmm_(c[:, i : i + TOKENS_AT_ONCE].T, c[:, i:])
        self.num_tokens += len(x)

    def matrix(self) -> Float[Tensor, "dim dim"]:
        """C, symmetric between blocks; the sum itself, which the next `add` goes on with."""
        for i in range(TOKENS_AT_ONCE, len(self._sum), TOKENS_AT_ONCE):
            self._sum[i : i + TOKENS_AT_ONCE, :i] = self._sum[:i, i : i + TOKENS_AT_ONCE].T
        return self._sum
