"""Gram matrices and second moments in float64, streamed in blocks."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ENTRIES = 1 << 22  # entries converted at a time: 32 MiB of float64, small beside any large weight
BLOCK = 256  # columns per block of the triangle: smaller ones save no more, as the product slows down


def chunk_rows(w: Float[Tensor, "m n"]) -> int:
    """Number of rows of `w` in a chunk of about `CHUNK_ENTRIES` entries (at least one)."""
    return max(1, CHUNK_ENTRIES // max(1, w.shape[1]))


def gram(
    w: Float[Tensor, "m n"], side: Literal["left", "right"] = "right", device: torch.device | None = None
) -> Float[Tensor, "k k"]:
    """Gram matrix in float64: `W^T W` [n n] for side "right", `W W^T` [m m] for "left".

    Streamed: only one chunk of `w` is converted at a time. Only the upper block triangle is computed and then mirrored,
    so the result is exactly symmetric between blocks.
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
    """C = sum of x x^T over tokens x, not centred, because an adapter must vanish on the mean, too.

    float64, because C squares the condition number of the activations: float32 sums resolve singular values down to
    3e-4 of the largest, float64 sums down to 1e-8. Only the upper block triangle is computed and kept.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        """Dimensions of a token."""
        self.num_tokens = 0
        """Number of tokens added so far."""
        starts = range(0, width, TOKENS_AT_ONCE)
        sizes = [(min(TOKENS_AT_ONCE, width - i), width - i) for i in starts]
        self._rows = [torch.zeros(*size, dtype=torch.float64, device=device) for size in sizes]

    @classmethod
    def of(cls, matrix: Float[Tensor, "dim dim"], num_tokens: int) -> "SecondMoment":
        """A sum that returns `matrix` from `matrix()`, on its device."""
        found = cls(len(matrix), matrix.device)
        found.num_tokens = num_tokens
        for i, rows in found._blocks():
            rows.copy_(matrix[i : i + len(rows), i:])
        return found

    def add(self, x: Float[Tensor, "tokens dim"]) -> None:
        """Adds tokens, from any device and dtype."""
        for chunk in x.split(CHUNK):
            c = chunk.to(self.device).double()
            for i, rows in self._blocks():
                rows.addmm_(c[:, i : i + len(rows)].T, c[:, i:])
        self.num_tokens += len(x)

    def matrix(self, *others: "SecondMoment") -> Float[Tensor, "dim dim"]:
        """C, symmetric between blocks; with `others`, of their tokens too, without a full matrix for each."""
        whole = torch.empty(self.width, self.width, dtype=torch.float64, device=self.device)
        for number, (i, rows) in enumerate(self._blocks()):
            stop = i + len(rows)
            for other in others:
                rows = rows + other._rows[number]
            whole[i:stop, i:] = rows
            whole[stop:, i:stop] = rows[:, len(rows) :].T
        return whole

    def diagonal(self) -> Float[Tensor, " dim"]:
        """The diagonal of C: the energy of each dimension."""
        return torch.cat([rows.diagonal() for rows in self._rows])

    @property
    def device(self) -> torch.device:
        """The device of the sum."""
        return self._rows[0].device

    def to(self, device: torch.device) -> "SecondMoment":
        """A copy on `device`."""
        moved = SecondMoment(self.width, "meta")
        moved.num_tokens = self.num_tokens
        moved._rows = [rows.to(device) for rows in self._rows]
        return moved

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and content of each block of rows, from its diagonal block on."""
        yield from zip(range(0, self.width, TOKENS_AT_ONCE), self._rows, strict=True)
