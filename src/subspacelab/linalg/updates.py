"""Measures of a weight's update: its position in the singular frame, against an earlier update, and as thin factors."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows


def principal_energy(delta: Float[Tensor, "m n"], u: Float[Tensor, "m k"], v: Float[Tensor, "n k"]) -> float:
    """Share of ||delta||_F^2 inside span(u) x span(v), divided by the share that a random update has there.

    (||U^T delta V||_F^2 / ||delta||_F^2) / ((k/m) (k/n)), U and V orthonormal: 1 for a random update, below 1 for an
    update that avoids the frame, at most m n / k^2. 0 for delta = 0.
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
    """<da, db> / (||da||_F ||db||_F): whether the second update continues the first; 0 if either is 0."""
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

    `ua`, `ub`: singular vectors of the base and of the tuned weight as columns, descending singular values. If k
    exceeds the columns of `ub`, all of them are checked. Streamed in row chunks: an embedding's `ua` in float64 would
    take gigabytes.
    """
    rows, leading = chunk_rows(ua), ub[:, :k]
    overlap = ua.new_zeros(ua.shape[1], leading.shape[1], dtype=torch.float64)
    for a, b in zip(ua.split(rows), leading.split(rows), strict=True):
        overlap.addmm_(a.double().T, b.double())
    return int((overlap.abs().amax(dim=0) < eps).sum())


@dataclass(frozen=True)
class FactoredSVD:
    """L R = U diag(S) V^T, float64; S is descending and may end in zeros."""

    U: Float[Tensor, "m r"]
    """Left singular vectors as columns."""
    S: Float[Tensor, " r"]
    """Singular values."""
    V: Float[Tensor, "n r"]
    """Right singular vectors as columns."""


def product_svd(left: Float[Tensor, "m q"], right: Float[Tensor, "q n"]) -> FactoredSVD:
    """Exact SVD of `left @ right` from L = Q_L R_L, R^T = Q_R R_R and the SVD of the small R_L R_R^T, in float64.

    Costs 2 (m + n) q^2 + O(q^3) operations; nothing larger than the factors is formed.
    """
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return FactoredSVD(q_left @ u, s, q_right @ vh.T)


def effective_rank(s: Float[Tensor, " r"]) -> float:
    """exp of the entropy of s / sum(s) (Roy & Vetterli 2007): r for r equal singular values, 1 for one, 0 for 0.

    `s`: singular values, all >= 0.
    """
    s = s.double()
    total = s.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(s / total).sum().exp().item()


def factored_energy(update: FactoredSVD, u: Float[Tensor, "m k"], v: Float[Tensor, "n k"]) -> float:
    """`principal_energy` of a product: share of ||L R||_F^2 inside span(u) x span(v), over a random update's."""
    (m, k), n = u.shape, v.shape[0]
    squares = update.S.square().sum().item()
    if squares == 0:
        return 0.0
    inside = (u.double().T @ update.U * update.S) @ (update.V.T @ v.double())
    return inside.square().sum().item() / squares * (m / k) * (n / k)


def random_frames_deviation(s: Float[Tensor, " r"], m: int, n: int, k: int) -> float:
    """Exact deviation of `factored_energy` of U diag(s) V^T with U, V uniform and independent; its mean is 1.

    With P = U^T u u^T U and Q = V^T v v^T V the share is sum_ij s_i s_j P_ij Q_ij. For a random projection of rank k in
    R^m, E P_ii^2 = k (k + 2) / (m (m + 2)); E P_ii P_jj and E P_ij^2 follow from tr P = k and P^2 = P. A Gaussian
    update (`random_energy_deviation`) has many singular values and therefore a smaller deviation than an update with
    few.
    """
    squares = s.double().square()
    share = squares / squares.sum()
    concentration = share.square().sum().item()
    (diagonal_m, both_m, off_m), (diagonal_n, both_n, off_n) = _projection_moments(m, k), _projection_moments(n, k)
    second = concentration * diagonal_m * diagonal_n + (1 - concentration) * (both_m * both_n + 2 * off_m * off_n)
    mean = (k / m) * (k / n)
    return math.sqrt(max(0.0, second - mean**2)) / mean


def _projection_moments(m: int, k: int) -> tuple[float, float, float]:
    """E P_11^2, E P_11 P_22 and E P_12^2 of a uniformly random projection of rank k in R^m."""
    diagonal = k * (k + 2) / (m * (m + 2))
    rest = max(1, m - 1)
    return diagonal, (k * k / m - diagonal) / rest, (k / m - diagonal) / rest


def norms_of_sum(w: Float[Tensor, "m n"], left: Float[Tensor, "m q"], right: Float[Tensor, "q n"]) -> Tensor:
    """Euclidean norms [m] of the rows of W + L R in float64, in chunks of rows and without the product."""
    left, right = left.double(), right.double()
    inner = right @ right.T
    norms = []
    rows = chunk_rows(w)
    for chunk, factor in zip(w.split(rows), left.split(rows), strict=True):
        c = chunk.double()
        cross = (c @ right.T * factor).sum(dim=1)
        norms.append(c.square().sum(dim=1) + 2 * cross + (factor @ inner * factor).sum(dim=1))
    return torch.cat(norms).clamp_min(0).sqrt()
