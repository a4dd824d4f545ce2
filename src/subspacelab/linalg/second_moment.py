"""The uncentred second moment of a stream of tokens, in float64; no token is kept."""

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024  # columns per block of the triangle; narrower ones slow the product down
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
            for i in range(0, width, BLOCK):
                self._sum[i : i + BLOCK, i:].addmm_(c[:, i : i + BLOCK].T, c[:, i:])
        self.num_tokens += len(x)

    def matrix(self) -> Float[Tensor, "dim dim"]:
        """C, symmetric between blocks; the sum itself, which the next `add` goes on with."""
        for i in range(BLOCK, len(self._sum), BLOCK):
            self._sum[i : i + BLOCK, :i] = self._sum[:i, i : i + BLOCK].T
        return self._sum
