"""Where an update of a weight lies: in which frame, in which entries, along which earlier update."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows


def principal_energy(delta: Float[Tensor, "m n"], u: Float[Tensor, "m k"], v: Float[Tensor, "n k"]) -> float:
    """Share of ||delta||_F^2 inside span(u) x span(v), over the share a random update has there.

    (||U^T delta V||_F^2 / ||delta||_F^2) / ((k/m) (k/n)), U and V orthonormal: 1 for a random update, below 1 for
    one that avoids the frame, at most m n / k^2. 0 for delta = 0.
    """
    (m, n), k = delta.shape, u.shape[1]
    projected = torch.zeros(k, n, dtype=torch.float64, device=delta.device)
    energy = 0.0
    rows = chunk_rows(delta)
    for chunk, basis in zip(delta.split(rows), u.split(rows), strict=True):
        c = chunk.double()
        projected.addmm_(basis.double().T, c)
        energy += c.square().sum().item()
    inside = (projected @ v.double()).square().sum().item()
    return inside / energy * (m / k) * (n / k) if energy > 0 else 0.0


def random_energy_deviation(m: int, n: int, k: int) -> float:
    """Exact standard deviation of `principal_energy` of a Gaussian update; its mean is 1.

    The share within the frame is Beta(k^2 / 2, (m n - k^2) / 2): (2 (m n - k^2) / (k^2 (m n + 2)))^(1/2).
    """
    return math.sqrt(2 * (m * n - k**2) / (k**2 * (m * n + 2)))


def random_cosine_deviation(m: int, n: int) -> float:
    """Exact standard deviation of `update_cosine` of any update with a Gaussian one: (m n)^(-1/2); its mean is 0."""
    return 1 / math.sqrt(m * n)


def update_cosine(da: Float[Tensor, "m n"], db: Float[Tensor, "m n"]) -> float:
    """<da, db> / (||da||_F ||db||_F): does the second update go on where the first went; 0 if either is 0."""
    rows = chunk_rows(da)
    inner = square_a = square_b = 0.0
    for chunk_a, chunk_b in zip(da.split(rows), db.split(rows), strict=True):
        x, y = chunk_a.double().flatten(), chunk_b.double().flatten()
        inner += (x @ y).item()
        square_a += (x @ x).item()
        square_b += (y @ y).item()
    # max/min keep rounding from carrying the cosine outside [-1, 1].
    product = (square_a**0.5) * (square_b**0.5)
    return max(-1.0, min(1.0, inner / product)) if product > 0 else 0.0


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
