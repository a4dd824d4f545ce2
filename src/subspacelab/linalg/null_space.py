"""Directions with little input energy: bottom eigenvectors of the second moment C (LoRA-Null, arXiv 2503.02659)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

TIE = 1e-9  # residual lengths closer than this count as equal: rounding must not choose between them


BottomPairs = Callable[[Float[Tensor, "dim dim"], int], tuple[Float[Tensor, " k"], Float[Tensor, "k dim"]]]
"""Function from a symmetric C and k to its k smallest eigenvalues, ascending, and their eigenvectors as rows."""


@dataclass(frozen=True)
class NullSpace:
    """The r directions of least energy, and facts about the spectrum."""

    basis: Float[Tensor, "r dim"]
    """Orthonormal rows, float64, lowest energy first; the entry of largest magnitude in each row is positive."""
    eigenvalues: Float[Tensor, " k"]
    """Eigenvalues of C, ascending, those below rounding set to 0: all of them, or the smallest r + 1."""
    num_clamped: int
    """Number of eigenvalues set to 0 because they are rounding: at most largest * dim * eps, some of them negative."""
    total: float
    """The sum of all eigenvalues."""

    @property
    def numerical_rank(self) -> int:
        """Number of directions with energy above rounding."""
        return self.basis.shape[1] - self.num_clamped

    @property
    def optimum(self) -> float:
        """sqrt(sum of the bottom r eigenvalues / total): the least ratio of any orthonormal B on C (Ky Fan)."""
        bottom = self.eigenvalues[: len(self.basis)].sum().item()
        return math.sqrt(bottom / self.total) if self.total > 0 else 0.0

    @property
    def gap(self) -> float:
        """l_(r+1) / l_r: near 1 the space is poorly determined; infinite if r = dim or l_r alone is 0, 1 if both
        are.
        """
        r = len(self.basis)
        if r == self.basis.shape[1]:
            return math.inf
        low, high = self.eigenvalues[r - 1].item(), self.eigenvalues[r].item()
        return high / low if low > 0 else math.inf if high > 0 else 1.0


def null_space(c: Float[Tensor, "dim dim"], rank: int) -> NullSpace:
    """The bottom `rank` eigenvectors of a symmetric C >= 0, by `eigh` in float64.

    If more than `rank` directions have no energy, the choice among them is arbitrary and LAPACK's would depend on the
    machine. Then the directions nearest to the coordinate axes are taken, greedily, the first axis in a tie. ValueError
    unless 1 <= rank <= dim.
    """
    if not 1 <= rank <= len(c):
        raise ValueError(f"rank {rank} of a second moment of {len(c)} dimensions: choose 1 <= rank <= {len(c)}")
    eigenvalues, vectors = torch.linalg.eigh(c.double())
    rounding = eigenvalues[-1].clamp_min(0) * len(c) * torch.finfo(torch.float64).eps
    empty = int((eigenvalues <= rounding).sum())
    rows = vectors.T
    basis = _nearest_axes(rows[:empty], rank) if empty > rank else rows[:rank]
    kept = torch.where(eigenvalues <= rounding, 0, eigenvalues)
    return NullSpace(_fix_signs(basis), kept, empty, kept.sum().item())


def bottom_null_space(c: Float[Tensor, "dim dim"], rank: int, solve: BottomPairs) -> NullSpace | None:
    """As `null_space`, from the smallest `rank` + 1 eigenpairs alone, computed by `solve`, which may overwrite C.

    None if more than `rank` directions have no energy: to choose among them, all must be known.
    """
    total = c.trace().item()
    rounding = _largest(c) * len(c) * torch.finfo(torch.float64).eps
    eigenvalues, rows = solve(c, rank + 1)
    empty = int((eigenvalues <= rounding).sum())
    if empty > rank:
        return None
    return NullSpace(_fix_signs(rows[:rank]), torch.where(eigenvalues <= rounding, 0, eigenvalues), empty, total)


def _largest(c: Float[Tensor, "dim dim"], steps: int = 30) -> float:
    """The largest eigenvalue, or slightly less, by power iteration: accurate enough to set the level of rounding."""
    v = c.diagonal().clone() + 1
    for _ in range(steps):
        v = c @ (v / v.norm().clamp_min(torch.finfo(v.dtype).tiny))
    return v.norm().item()


def null_ratio(c: Float[Tensor, "dim dim"], basis: Float[Tensor, "r dim"]) -> float:
    """||B X||_F / ||X||_F = sqrt(tr(B C B^T) / tr C) for orthonormal rows B; 0 where C = 0."""
    b, total = basis.to(c.device).double(), c.double().trace().item()
    energy = ((b @ c.double()) * b).sum().item()
    return math.sqrt(max(energy, 0.0) / total) if total > 0 else 0.0


def optimal_ratio(eigenvalues: Float[Tensor, " dim"], rank: int) -> float:
    """sqrt(sum of the `rank` smallest / sum of all) of ascending eigenvalues; negative ones count as 0."""
    values = eigenvalues.double().clamp_min(0)
    total = values.sum().item()
    return math.sqrt(values[:rank].sum().item() / total) if total > 0 else 0.0


def random_ratio(rank: int, dim: int) -> float:
    """sqrt(r / d): the root of the mean squared ratio of a uniformly random B."""
    return math.sqrt(rank / dim)


def row_space(b: Float[Tensor, "r dim"]) -> Float[Tensor, "r dim"]:
    """Orthonormal rows that span the rows of B, float64; B itself would make the ratio depend on its size.

    By SVD, so that rows of very different length have equal weight; the rows of B must be independent.
    """
    basis: Tensor = torch.linalg.svd(b.double(), full_matrices=False).Vh
    return basis


def projected_factors(
    w: Float[Tensor, "out dim"], basis: Float[Tensor, "r dim"]
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r dim"]]:
    """(U sqrt(S), sqrt(S) V^T) of W N N^T = U S V^T, N^T = `basis`; float64, from the svd of W N [out r].

    ValueError if r exceeds `out`, the largest rank that W N can have.
    """
    if len(basis) > len(w):
        raise ValueError(f"rank {len(basis)} of a weight with {len(w)} outputs: W N has no more than these")
    n = basis.to(w.device).double()
    u, s, vh = torch.linalg.svd(w.double() @ n.T, full_matrices=False)
    return u * s.sqrt(), s.sqrt()[:, None] * (vh @ n)


def _nearest_axes(rows: Float[Tensor, "m dim"], rank: int) -> Float[Tensor, "rank dim"]:
    """`rank` orthonormal directions in the row space, by pivoted Gram-Schmidt on the projections of the axes."""
    left = rows.clone()  # column j: what is left of axis j, in coordinates of the space
    chosen = []
    for _ in range(rank):
        lengths = left.square().sum(0)
        j = int((lengths >= lengths.max() - TIE).int().argmax())
        q = left[:, j] / lengths[j].sqrt()
        left -= torch.outer(q, q @ left)
        chosen.append(q @ rows)
    # A second orthogonalisation: one pass of Gram-Schmidt loses digits where axes are nearly dependent.
    return _orthonormal_rows(torch.stack(chosen))


def _orthonormal_rows(b: Float[Tensor, "r dim"]) -> Float[Tensor, "r dim"]:
    q, r = torch.linalg.qr(b.T)
    fixed: Tensor = (q * r.diagonal().sgn()).T
    return fixed


def _fix_signs(b: Float[Tensor, "r dim"]) -> Float[Tensor, "r dim"]:
    largest = b.gather(1, b.abs().argmax(1, keepdim=True))
    fixed: Tensor = torch.where(largest < 0, -b, b).contiguous()
    return fixed
