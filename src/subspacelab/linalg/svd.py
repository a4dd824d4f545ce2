"""Thin singular value decomposition of a weight matrix, accurate to float32 rounding, and measures of its spectrum."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.moments import chunk_rows, gram


def resolve_tail(
    weak: Float[Tensor, "m t"], strong: Float[Tensor, "m h"], noise: float
) -> tuple[Float[Tensor, "m t"], Float[Tensor, " t"], Float[Tensor, "t t"]]:
    """SVD of `weak` = A V_t inside the complement of the strong left vectors: (U_t, S_t, R); V_t R are the right ones.

    A V_t has the tail accurate to eps s_1, the Gram matrix only to sqrt(eps) s_1. Columns below `noise` have no defined
    direction: seeded random ones complete the basis, with the singular values that the product gives them.
    """
    q = _orthonormal_outside(strong, _directions(weak, noise))
    p, s, rh = torch.linalg.svd(q.T @ weak)
    return q @ p, s, rh.T


def _directions(weak: Float[Tensor, "m t"], noise: float) -> Float[Tensor, "m t"]:
    norms = torch.linalg.vector_norm(weak, dim=0)
    random = torch.randn(weak.shape, generator=torch.Generator().manual_seed(0), dtype=weak.dtype)
    return torch.where(norms > noise, weak / norms, random.to(weak.device))


def _orthonormal_outside(strong: Float[Tensor, "m h"], q: Float[Tensor, "m t"]) -> Float[Tensor, "m t"]:
    """Orthonormal columns in the span of `q`, orthogonal to `strong`; done twice, since one pass leaves rounding."""
    rows = chunk_rows(strong)
    for _ in range(2):
        overlap = q.new_zeros(strong.shape[1], q.shape[1])
        for basis, part in zip(strong.split(rows), q.split(rows), strict=True):
            overlap.addmm_(basis.double().T, part)
        for basis, part in zip(strong.split(rows), q.split(rows), strict=True):
            part.addmm_(basis.double(), overlap, alpha=-1)
        q = torch.linalg.qr(q).Q
    return q


NOT_FINITE = "the matrix holds NaN or Inf: repair or exclude this weight"

# Squaring the condition costs the columns of A V their orthogonality: u_i . u_j is off by about
# eps (s_1 / s_i) (s_1 / s_j) / sqrt(n), which at 1e-4 is float32 rounding. Weaker directions are the tail.
TAIL = 1e-4


def gram_spectrum(a: Float[Tensor, "m n"], device: torch.device) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Singular values, descending, and right singular vectors of `a` in float64, from `eigh` of its Gram matrix.

    ValueError for NaN or Inf, either of which always reaches the diagonal.
    """
    g = gram(a, device=device)
    if not torch.isfinite(g.diagonal()).all():
        raise ValueError(NOT_FINITE)
    squares, v = torch.linalg.eigh(g)
    return squares.flip(0).clamp_min(0).sqrt(), v.flip(1)


def num_tail(s: Float[Tensor, " r"]) -> int:
    """Number of trailing singular values, of a descending list, that are too small for the Gram matrix to resolve."""
    return int((s <= TAIL * s[0]).sum())


def left_factor(
    a: Float[Tensor, "m n"], s: Float[Tensor, " r"], v: Float[Tensor, "n r"]
) -> tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "n r"]]:
    """U = A V / s in row chunks, with the tail computed again: (U, S, V) in float32.

    U has the memory order of `a`, so that the Vh of a transposed wide matrix is contiguous.
    """
    m, r, head = a.shape[0], len(s), len(s) - num_tail(s)
    by_column = a.stride(0) < a.stride(1)
    u = v.new_empty((r, m) if by_column else (m, r), dtype=torch.float32)
    u = u.T if by_column else u
    weak = v.new_empty(m, r - head)
    rows = chunk_rows(a)
    for chunk, u_rows, weak_rows in zip(a.split(rows), u.split(rows), weak.split(rows), strict=True):
        c = chunk.to(v.device).double()
        product = (v.T @ c.T).T if by_column else c @ v
        u_rows[:, :head] = product[:, :head].div_(s[:head])
        weak_rows.copy_(product[:, head:])
    if head < r:
        u[:, head:], s_tail, turn = resolve_tail(
            weak, u[:, :head], noise=a.shape[1] * torch.finfo(s.dtype).eps * s[0].item()
        )
        s = torch.cat([s[:head], s_tail])
        v = torch.cat([v[:, :head], v[:, head:] @ turn], dim=1)
    return u, s.float(), v.float()


Method = Literal["auto", "gram", "lapack"]

SMALL_SIDE = 64  # up to this short side LAPACK takes milliseconds and needs no second computation
LAPACK_ENTRIES = 1 << 26  # `auto` gives LAPACK nothing larger: its float64 copies take some 40 bytes per entry
TAIL_SHARE = 1 / 8  # beyond this share of weak directions LAPACK is the faster on the CPU


@dataclass(frozen=True)
class SVD:
    """W = U diag(S) Vh; singular values descend; the largest-magnitude entry of each U column is positive."""

    U: Float[Tensor, "m r"]
    """Left singular vectors as columns, float32, contiguous."""
    S: Float[Tensor, " r"]
    """Singular values, descending, float32."""
    Vh: Float[Tensor, "r n"]
    """Right singular vectors as rows, float32, contiguous."""
    method: Literal["gram", "lapack"]
    """The method that computed it."""


def svd(
    w: Float[Tensor, "m n"],
    *,
    rank: int | None = None,
    method: Method = "auto",
    device: torch.device | str | None = None,
) -> SVD:
    """Thin SVD W = U diag(S) Vh of all r = min(m, n) directions, or of the leading `rank` of them.

    "gram": eigenvectors of the short side's float64 Gram matrix, the other factor from one float64 product in row
    chunks; directions below 1e-4 of the largest singular value are computed again from their own product. "lapack":
    `torch.linalg.svd` in float64. "auto": gram, but LAPACK if the short side is at most 64 or, on the CPU, if more than
    an eighth of the directions are below 1e-4. On CUDA the condition never changes the choice: cuSOLVER's SVD costs
    many times its `eigh`.

    The factors are on `device` (default: that of `w`); "mps" lacks float64 and means the CPU. Among entries of equal
    magnitude the first decides the sign. ValueError unless the matrix is non-empty and floating-point, the rank in 1
    ... min(m, n), the method known and all entries finite.
    """
    _check(w, rank, method)
    place = torch.device(device or w.device)
    place = torch.device("cpu") if place.type == "mps" else place
    wide = w.shape[0] < w.shape[1]
    a = w.T if wide else w
    left, s, right, used = _factors(a, rank or a.shape[1], method, place)
    u, v = (right, left) if wide else (left, right)
    fix_signs(u, v)
    return SVD(u.contiguous(), s, v.T.contiguous(), used)


def _check(w: Tensor, rank: int | None, method: str) -> None:
    shape = list(w.shape)
    if w.ndim != 2 or w.numel() == 0 or not w.is_floating_point():
        raise ValueError(f"cannot decompose {w.dtype} of shape {shape}: give a non-empty floating-point matrix")
    if rank is not None and not 1 <= rank <= min(shape):
        raise ValueError(f"rank {rank} of a {shape[0]} x {shape[1]} matrix: choose 1 <= rank <= {min(shape)}")
    if method not in get_args(Method):
        raise ValueError(f"method {method!r}: choose one of {', '.join(get_args(Method))}")


def _factors(
    a: Float[Tensor, "m n"], rank: int, method: Method, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Literal["gram", "lapack"]]:
    """Left [m rank], singular values, right [n rank] of a tall matrix in float32, and the method used."""
    may_lapack = method == "auto" and a.numel() <= LAPACK_ENTRIES
    if method == "lapack" or (may_lapack and a.shape[1] <= SMALL_SIDE):
        return *_lapack(a, rank, device), "lapack"
    s, v = gram_spectrum(a, device)
    s, v = s[:rank], v[:, :rank]
    if may_lapack and device.type == "cpu" and num_tail(s) > TAIL_SHARE * rank:
        return *_lapack(a, rank, device), "lapack"
    return *left_factor(a, s, v), "gram"


def _lapack(a: Float[Tensor, "m n"], rank: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    dense = a.to(device).double()
    if not torch.isfinite(dense).all():
        raise ValueError(NOT_FINITE)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    return u[:, :rank].float(), s[:rank].float(), vh[:rank].T.float()


def fix_signs(u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]) -> None:
    """Flips columns of both in place so that the first entry of largest magnitude in each column of `u` is positive."""
    high, low = u.amax(dim=0), u.amin(dim=0)
    flip = -low > high
    for j in (-low == high).nonzero().flatten().tolist():  # rare: both signs reach the largest magnitude
        flip[j] = u[u[:, j].abs().argmax(), j] < 0
    sign = torch.where(flip, -1.0, 1.0).to(u.dtype)
    u.mul_(sign)
    v.mul_(sign)


def reconstruction_error(w: Float[Tensor, "m n"], svd: SVD) -> float:
    """||W - U diag(S) Vh||_F / ||W||_F in float64, one row chunk at a time; 0 if W = 0 is reproduced exactly."""
    scaled = svd.S.double()[:, None] * svd.Vh.double()
    rows = chunk_rows(w)
    wrong = size = 0.0
    for chunk, u in zip(w.split(rows), svd.U.split(rows), strict=True):
        c = chunk.to(scaled.device).double()
        size += c.square().sum().item()
        wrong += torch.addmm(c, u.double(), scaled, alpha=-1).square().sum().item()
    return (wrong / size) ** 0.5 if wrong > 0 else 0.0


def orthogonality_error(svd: SVD) -> float:
    """max(max |U^T U - I|, max |Vh Vh^T - I|) in float64."""
    return max(_deviation(gram(svd.U)), _deviation(gram(svd.Vh, "left")))


def _deviation(g: Float[Tensor, "r r"]) -> float:
    g.diagonal().sub_(1)
    return g.abs().max().item()


def normalised_spectral_shift(sa: Float[Tensor, " r"], sb: Float[Tensor, " r"]) -> float:
    """||sb - sa||_2 / ||sa||_2 of two descending spectra (2511.08567, section 4.1).

    0 for equal spectra, infinite if only `sa` is zero.
    """
    shift = torch.linalg.vector_norm(sb.double() - sa.double()).item()
    size = torch.linalg.vector_norm(sa.double()).item()
    return 0.0 if shift == 0 else shift / size if size > 0 else math.inf


def stable_rank(w: Float[Tensor, "m n"]) -> float:
    """||W||_F^2 / ||W||_2^2, both from the float64 Gram matrix of the short side; 0 for W = 0 (2606.07082)."""
    g = gram(w, "right" if w.shape[0] >= w.shape[1] else "left")
    largest = torch.linalg.eigvalsh(g)[-1].item()
    return g.trace().item() / largest if largest > 0 else 0.0


def spectral_gap(s: Float[Tensor, " r"], k: int) -> float:
    """sigma_k / sigma_(k+1), counting from 1; infinite if sigma_(k+1) is absent or 0.

    Near 1 the leading-k subspace is poorly determined. ValueError unless 1 <= k <= len(s).
    """
    if not 1 <= k <= len(s):
        raise ValueError(f"spectral gap at k = {k} of {len(s)} singular values: choose 1 <= k <= {len(s)}")
    if k == len(s) or s[k] == 0:
        return math.inf
    return s[k - 1].item() / s[k].item()
