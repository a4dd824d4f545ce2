"""Random updates with the norm, the singular values, or the entries of the real one, and nothing else in common."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.rotation.leading import singular_values

Model = Literal["gaussian", "spectrum", "permuted"]
MODELS: tuple[Model, ...] = get_args(Model)
"""gaussian: independent entries; spectrum: the update's singular values in random frames; permuted: its entries in
random places, so that it is equally sparse. All have its Frobenius norm."""
RESOLVED = 1e-7  # of the largest singular value: what the float64 Gram matrix tells from 0


@dataclass(frozen=True)
class RealUpdate:
    """The update D of a weight that random ones are compared with."""

    shape: tuple[int, ...]
    """[m, n]."""
    norm: float
    """||D||_F."""
    device: torch.device
    """Device for the random updates."""
    entries: Callable[[], Float[Tensor, "m n"]]
    """Function that returns D, which is not kept."""

    @cached_property
    def spectrum(self) -> Float[Tensor, " r"]:
        """Non-zero singular values of D, float64, on the CPU, scaled to `norm`."""
        s = singular_values(self.entries()).cpu()
        s = s[s > RESOLVED * s[0]]
        return s * (self.norm / torch.linalg.vector_norm(s))

    def draw(self, model: Model, generator: torch.Generator) -> Float[Tensor, "m n"]:
        """A random update of this kind, float64."""
        if model == "spectrum":
            return in_random_frames(self.spectrum, self.shape, generator, self.device)
        if model == "permuted":
            return permuted(self.entries(), generator)
        return gaussian_update(self.shape, self.norm, generator).to(self.device)


def gaussian_update(shape: tuple[int, ...], norm: float, generator: torch.Generator) -> Float[Tensor, "m n"]:
    """A matrix of independent Gaussian entries scaled to Frobenius norm `norm`, float64."""
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    return drawn.mul_(norm / torch.linalg.vector_norm(drawn))


def in_random_frames(
    s: Float[Tensor, " r"], shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> Float[Tensor, "m n"]:
    """U diag(s) V^T with uniformly random orthonormal U and V: float64, from frames in float32 (1e-6 of its norm)."""
    left, right = (_frame(size, len(s), generator).to(device) for size in shape)
    left *= s.to(device, torch.float32)
    drawn = torch.empty(shape, dtype=torch.float64, device=device)
    rows = chunk_rows(drawn)
    for out, part in zip(drawn.split(rows), left.split(rows), strict=True):
        out.copy_(part @ right.T)
    return drawn


def _frame(size: int, count: int, generator: torch.Generator) -> Float[Tensor, "size count"]:
    """Haar: Q of a Gaussian matrix with diag(R) > 0 (Mezzadri, math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(size, count, generator=generator))
    return q.mul_(r.diagonal().sgn())


def permuted(update: Float[Tensor, "m n"], generator: torch.Generator) -> Float[Tensor, "m n"]:
    """The entries of `update` in random places, float64."""
    places = torch.randperm(update.numel(), generator=generator).to(update.device)
    shuffled = update.flatten()[places]
    del places
    return shuffled.double().view(update.shape)
