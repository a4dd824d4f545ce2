"""Thin singular value decomposition of a weight matrix: exact, in float32, accurate to float32 rounding."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.svd_gram import NOT_FINITE, gram_spectrum, left_factor, num_tail

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
    chunks; directions below 1e-4 of the largest singular value are computed again from their own product.
    "lapack": `torch.linalg.svd` in float64. "auto": gram, but LAPACK where the short side is at most 64 or, on the
    CPU, more than an eighth of the directions are that weak. On CUDA the condition never changes the
    choice: cuSOLVER's SVD costs many times its `eigh`.

    The factors lie on `device` (default: that of `w`); "mps" has no float64 and means the CPU. Among entries of equal
    magnitude the first decides the sign. Raises ValueError for anything but a non-empty floating matrix, a rank
    outside 1 ... min(m, n), an unknown method, and NaN or Inf among the entries.
    """
    _check(w, rank, method)
    place = torch.device(device or w.device)
    place = torch.device("cpu") if place.type == "mps" else place
    wide = w.shape[0] < w.shape[1]
    a = w.T if wide else w
    left, s, right, used = _factors(a, rank or a.shape[1], method, place)
    u, v = (right, left) if wide else (left, right)
    _fix_signs(u, v)
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


def _fix_signs(u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]) -> None:
    """Flip columns of both in place so that the first entry of largest magnitude in each column of `u` is positive."""
    high, low = u.amax(dim=0), u.amin(dim=0)
    flip = -low > high
    for j in (-low == high).nonzero().flatten().tolist():  # rare: both signs reach the largest magnitude
        flip[j] = u[u[:, j].abs().argmax(), j] < 0
    sign = torch.where(flip, -1.0, 1.0).to(u.dtype)
    u.mul_(sign)
    v.mul_(sign)
