"""Orthonormal bases, the angles between two subspaces, and whether rotations compose."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows
from subspacelab.linalg.svd import gram_spectrum, num_tail


def random_orthonormal(
    m: int, k: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "m k"]:
    """`k` orthonormal columns in R^m, uniform under rotations (Haar): Q of a Gaussian matrix, diag(R) > 0.

    Without the sign fix, Householder's convention would bias the columns (Mezzadri, math-ph/0609050). ValueError if `k
    > m`.
    """
    if not 0 < k <= m:
        raise ValueError(f"cannot draw k = {k} orthonormal columns in dimension m = {m}: choose 1 <= k <= {m}")
    gaussian = torch.randn(m, k, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(gaussian)
    return q.mul_(r.diagonal().sgn()).to(dtype)


def principal_angles(qa: Float[Tensor, "m k"], qb: Float[Tensor, "m k"]) -> Float[Tensor, " k"]:
    """Principal angles in radians, ascending, float64, between the column spans of `qa` and `qb`.

    cos(theta) = singular values of Qa^T Qb; sin(theta) = those of Qb - Qa Qa^T Qb; theta = atan2(sin, cos): the sine is
    accurate for small angles, which the cosine alone loses below 1e-8, and the cosine for angles near pi/2. The columns
    need not be orthonormal, but independent: both bases are orthonormalised by QR in float64 (Bjorck & Golub 1973;
    Knyazev & Argentati 2002).
    """
    qa = torch.linalg.qr(qa.double()).Q
    qb = torch.linalg.qr(qb.double()).Q
    overlap = qa.T @ qb
    cosines = torch.linalg.svdvals(overlap)
    sines = torch.linalg.svdvals(qb - qa @ overlap).flip(0)
    return torch.atan2(sines, cosines)


@dataclass(frozen=True)
class Composition:
    """The difference between (Q0^T Q1)(Q1^T Q2) and Q0^T Q2, which is -Q0^T (I - Q1 Q1^T) Q2."""

    mse: float
    """Mean of the squared entries of the difference."""
    relative: float
    """Frobenius norm of the difference over that of Q0^T Q2 (0 if the difference is 0)."""


def rotation(qa: Float[Tensor, "m ra"], qb: Float[Tensor, "m rb"]) -> Float[Tensor, "ra rb"]:
    """R = Qa^T Qb in float64, streamed over the rows of tall bases."""
    total = torch.zeros(qa.shape[1], qb.shape[1], dtype=torch.float64, device=qa.device)
    rows = chunk_rows(qa)
    for a, b in zip(qa.split(rows), qb.split(rows), strict=True):
        total.addmm_(a.double().T, b.double())
    return total


@dataclass(frozen=True)
class Span:
    """The column space of a matrix by an orthonormal basis X T, whose m x r entries are never formed."""

    columns: Float[Tensor, "m r"]
    """X."""
    whitening: Float[Tensor, "r r"]
    """T, float64."""


Basis = Float[Tensor, "m _"] | Span
"""A space by the orthonormal columns of a matrix, or as a `Span`."""


def span_of(a: Float[Tensor, "m r"]) -> Span:
    """The column space of a tall matrix of full rank: T = V / S, from its float64 Gram matrix V S^2 V^T.

    The columns of A T are orthonormal to about eps (s_1 / s_r)^2. For a square matrix, and for one with singular values
    below 1e-4 of the largest, A is Q of its QR decomposition in float64, and T = I.
    """
    if a.shape[0] > a.shape[1]:
        s, v = gram_spectrum(a, a.device)
        if not num_tail(s):
            return Span(a, v / s)
    q = torch.linalg.qr(a.double()).Q
    return Span(q, torch.eye(q.shape[1], dtype=q.dtype, device=q.device))


def composition_error(q0: Basis, q1: Basis, q2: Basis) -> Composition:
    """Error of the claim R_02 = R_01 R_12 for three bases, R_ab = Qa^T Qb, in float64.

    R_01 R_12 - R_02 = -Q0^T (I - Q1 Q1^T) Q2: the product of the two projections outside span(Q1). So the error depends
    only on the tilt of the spans. It is 0 for any matrices if Q1 is square (Q1 Q1^T = I), as on the short side of a
    full decomposition. It does not change if the columns of a basis are rotated among themselves (Q -> Q H, H
    orthogonal), so it does not show rotations of singular directions within the column space; a `Span` is enough.
    Nothing larger than r x r is formed.
    """
    direct = _overlap(q0, q2)
    difference = torch.addmm(direct, _overlap(q0, q1), _overlap(q1, q2), beta=-1)
    norm = torch.linalg.matrix_norm(difference).item()
    return Composition(
        mse=norm**2 / difference.numel(),
        relative=norm / torch.linalg.matrix_norm(direct).item() if norm > 0 else 0.0,
    )


def _overlap(a: Basis, b: Basis) -> Float[Tensor, "ra rb"]:
    """`rotation` of two bases, each as its columns or as a span."""
    x, y = (q.columns if isinstance(q, Span) else q for q in (a, b))
    overlap = rotation(x, y)
    if isinstance(a, Span):
        overlap = a.whitening.T @ overlap
    return overlap @ b.whitening if isinstance(b, Span) else overlap
