"""All singular values and the leading triples of a large matrix, in a third of the time and memory of all triples."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.linalg import eigh, eigh_tridiagonal, eigvalsh, eigvalsh_tridiagonal
from scipy.linalg.lapack import dormqr, dsytrd, dsytrd_lwork
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows, gram
from subspacelab.linalg.svd import SVD, TAIL, fix_signs, stable_rank

SMALLEST = 768  # short side below which all triples take a fraction of a second
PANEL = 128  # reflectors applied at a time
LOOKED_AT = 10  # leading directions of a tuned weight that may be intruders


@dataclass(frozen=True)
class Leading:
    """The leading triples of a matrix, and all its singular values."""

    svd: SVD
    """U [m, k], S [k], Vh [k, n]."""
    spectrum: Float[Tensor, " r"]
    """All singular values, descending, float32."""


def is_cheaper(k: int, shape: tuple[int, ...]) -> bool:
    """Whether the `k` leading triples of a matrix cost much less than all."""
    return 4 * k <= min(shape) >= SMALLEST


def leading_svd(w: Float[Tensor, "m n"], k: int) -> Leading | None:
    """The `k` leading triples of W and all its singular values, from the float64 Gram matrix of the short side.

    The Gram matrix is reduced to tridiagonal form once, in its own memory: eigenvalues by QR (sterf), `k` eigenvectors
    by MRRR (stemr; Dhillon & Parlett 2004), and the reflectors that transform back. In addition to W this takes one
    float64 matrix of the short side. Singular values are exact to 1e-16 s_1^2 / s.

    None if `svd` of all triples is better: for a short side below 768, for more than a quarter of the directions, or
    for leading ones below 1e-4 of the largest, which the Gram matrix does not resolve.
    """
    a = w if w.shape[0] >= w.shape[1] else w.T
    if not is_cheaper(k, a.shape):
        return None
    squares, v = _leading_eigenvectors(gram(a), k)
    s = squares.clamp_min(0).sqrt()
    if not s[0] > 0 or s[k - 1] <= TAIL * s[0]:
        return None
    u = torch.empty(a.shape[0], k, dtype=torch.float32, device=w.device)
    rows = chunk_rows(a)
    for out, chunk in zip(u.split(rows), a.split(rows), strict=True):
        out.copy_((chunk.double() @ v).div_(s[:k]))
    right = v.float()
    left, right = (u, right) if a is w else (right, u)
    fix_signs(left, right)
    return Leading(SVD(left.contiguous(), s[:k].float(), right.T.contiguous(), "gram"), s.float())


def singular_values(w: Float[Tensor, "m n"]) -> Float[Tensor, " r"]:
    """All singular values, descending, float64: roots of the Gram matrix's eigenvalues, exact to 1e-16 s_1^2 / s.

    scipy works in the memory of a large Gram matrix, torch is many times as fast with a small one.
    """
    g = gram(w, "right" if w.shape[0] >= w.shape[1] else "left")
    if g.is_cuda or len(g) < SMALLEST:
        squares = torch.linalg.eigvalsh(g)
    else:
        squares = torch.from_numpy(eigvalsh(g.numpy().T, overwrite_a=True, check_finite=False)).to(w.device)
    return squares.flip(0).clamp_min(0).sqrt()


def stable_rank_of(w: Float[Tensor, "m n"]) -> float:
    """`svd.stable_rank`, with half its memory for a large matrix."""
    if min(w.shape) < SMALLEST:
        return stable_rank(w)
    squares = singular_values(w).square()
    return (squares.sum() / squares[0]).item() if squares[0] > 0 else 0.0


def _leading_eigenvectors(g: Float[Tensor, "n n"], k: int) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """All eigenvalues, descending, and the eigenvectors of the `k` largest; overwrites `g`."""
    if g.is_cuda:
        values, vectors = torch.linalg.eigh(g)
        return values.flip(0), vectors[:, -k:].flip(1)
    n, device = len(g), g.device
    work = int(dsytrd_lwork(n, lower=1)[0])
    # The transpose of a symmetric matrix is itself, in the order that LAPACK overwrites without a copy.
    a, diagonal, below, tau, info = dsytrd(g.numpy().T, lower=1, lwork=work, overwrite_a=1)
    if info:
        raise ValueError(f"dsytrd: argument {-info}")
    values = eigvalsh_tridiagonal(diagonal, below)
    _, z = eigh_tridiagonal(diagonal, below, select="i", select_range=(n - k, n - 1))
    # Q = H_1 ... H_(n-1) as in a QR decomposition of the rows from the second on; by panels, as each is copied.
    for j in reversed(range(0, n - 1, PANEL)):
        panel = a[j + 1 :, j : min(j + PANEL, n - 1)]
        z[j + 1 :], _, _ = dormqr("L", "N", panel, tau[j : j + panel.shape[1]], z[j + 1 :], 64 * z.shape[1])
    return torch.from_numpy(values[::-1].copy()).to(device), torch.from_numpy(z[:, ::-1].copy()).to(device)


def overlaps(w: Float[Tensor, "m n"], directions: Float[Tensor, "m t"]) -> Float[Tensor, "r t"]:
    """<u_i, d_t> for every left singular vector u_i of W, without forming them: V^T (W^T d) / s if W is tall."""
    tall = w.shape[0] >= w.shape[1]
    a = w if tall else w.T
    g = gram(a)
    if g.is_cuda:
        squares, v = torch.linalg.eigh(g)
    else:
        found = eigh(g.numpy().T, driver="evr", overwrite_a=True, check_finite=False)
        squares, v = (torch.from_numpy(part) for part in found)
    if not tall:
        return v.T @ directions.double()
    seen = torch.zeros(w.shape[1], directions.shape[1], dtype=torch.float64, device=w.device)
    rows = chunk_rows(w)
    for chunk, part in zip(w.split(rows), directions.split(rows), strict=True):
        seen.addmm_(chunk.double().T, part.double())
    return (v.T @ seen) / squares.clamp_min(torch.finfo(torch.float64).eps * squares[-1].item()).sqrt()[:, None]
