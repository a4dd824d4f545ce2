"""Bottom eigenvectors of second moments: from all pairs, or from the bottom ones in place if memory is scarce."""

import math

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg import null_space as full
from subspacelab.linalg.null_space import NullSpace

WIDE = 8192
"""From this width on, the bottom pairs are computed in place by LAPACK's syevr. All pairs need a copy of C and a
workspace of twice its size: 2.9 GB at width 11008, 21 GB at 29568. At 4096 both take the same time; at 2048 all pairs
are faster (`benchmarks/calibration_scale.py --eigenvectors`)."""


def null_space(c: Float[Tensor, "dim dim"], rank: int) -> NullSpace:
    """The bottom `rank` eigenvectors of a float64 C >= 0, which may be overwritten; ValueError unless 1 <= rank <= dim.

    On the CPU, only the smallest `rank` + 1 pairs of a wide C are computed, if they are enough.
    """
    if c.device.type == "cpu" and len(c) >= WIDE and 2 * rank < len(c):
        diagonal = c.diagonal().clone()
        found = full.bottom_null_space(c, rank, smallest_pairs)
        if found is not None:
            return found
        _restore(c, diagonal)
    return full.null_space(c, rank)


def optimum(c: Float[Tensor, "dim dim"], rank: int) -> float:
    """The smallest ||B X||_F / ||X||_F of any B of this rank, from C = X^T X, which may be overwritten."""
    if not (c.device.type == "cpu" and len(c) >= WIDE and 2 * rank < len(c)):
        return full.optimal_ratio(torch.linalg.eigvalsh(c), rank)
    total = c.trace().item()
    bottom = smallest_pairs(c, rank)[0].clamp_min(0).sum().item()
    return math.sqrt(bottom / total) if total > 0 else 0.0


def smallest_pairs(c: Float[Tensor, "dim dim"], k: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "k dim"]]:
    """The `k` smallest eigenvalues of a symmetric C, ascending, and their vectors as rows; C is overwritten.

    LAPACK's syevr (MRRR), in place: it writes only to the diagonal and one triangle.
    """
    fortran = c.numpy().T  # the same matrix, in the order in which LAPACK works without a copy
    values, vectors = scipy.linalg.eigh(
        fortran, lower=True, overwrite_a=True, check_finite=False, subset_by_index=[0, k - 1], driver="evr"
    )
    return torch.from_numpy(values), torch.from_numpy(vectors.T.copy())


def _restore(c: Float[Tensor, "dim dim"], diagonal: Float[Tensor, " dim"]) -> None:
    """Restores from the other triangle what `smallest_pairs` has overwritten."""
    for i in range(len(c)):
        c[i, i + 1 :] = c[i + 1 :, i]
    c.diagonal().copy_(diagonal)
