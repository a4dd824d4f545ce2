"""The Gram route to the SVD of a tall matrix: eigenvectors of A^T A, one product, and a second look at the tail."""

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows, gram
from subspacelab.linalg.svd_tail import resolve_tail

NOT_FINITE = "the matrix holds NaN or Inf: repair or exclude this weight"

# Squaring the condition costs the columns of A V their orthogonality: u_i . u_j is off by about
# eps (s_1 / s_i) (s_1 / s_j) / sqrt(n), which at 1e-4 is float32 rounding. Weaker directions are the tail.
TAIL = 1e-4


def gram_spectrum(a: Float[Tensor, "m n"], device: torch.device) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Singular values, descending, and right singular vectors of `a` in float64, from `eigh` of its Gram matrix.

    Raises ValueError for NaN or Inf, either of which always reaches the diagonal.
    """
    g = gram(a, device=device)
    if not torch.isfinite(g.diagonal()).all():
        raise ValueError(NOT_FINITE)
    squares, v = torch.linalg.eigh(g)
    return squares.flip(0).clamp_min(0).sqrt(), v.flip(1)


def num_tail(s: Float[Tensor, " r"]) -> int:
    """How many of the descending singular values are too weak for the Gram matrix to resolve."""
    return int((s <= TAIL * s[0]).sum())


def left_factor(
    a: Float[Tensor, "m n"], s: Float[Tensor, " r"], v: Float[Tensor, "n r"]
) -> tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "n r"]]:
    """U = A V / s in row chunks with the tail computed again: (U, S, V) in float32.

    U takes the memory order of `a`, so that the Vh of a transposed wide matrix is contiguous.
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
