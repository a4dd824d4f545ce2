"""Rotations between singular bases, and whether two of them compose to a third."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.gram import chunk_rows


@dataclass(frozen=True)
class Composition:
    """How far (Q0^T Q1)(Q1^T Q2) is from Q0^T Q2, which is by -Q0^T (I - Q1 Q1^T) Q2."""

    mse: float
    """Mean of the squared entries of the difference."""
    relative: float
    """Frobenius norm of the difference over that of Q0^T Q2 (0 where the difference is 0)."""


def rotation(qa: Float[Tensor, "m ra"], qb: Float[Tensor, "m rb"]) -> Float[Tensor, "ra rb"]:
    """R = Qa^T Qb in float64, streamed over the rows of tall bases."""
    total = torch.zeros(qa.shape[1], qb.shape[1], dtype=torch.float64, device=qa.device)
    rows = chunk_rows(qa)
    for a, b in zip(qa.split(rows), qb.split(rows), strict=True):
        total.addmm_(a.double().T, b.double())
    return total


def composition_error(q0: Float[Tensor, "m r"], q1: Float[Tensor, "m r1"], q2: Float[Tensor, "m r"]) -> Composition:
    """Error of the claim R_02 = R_01 R_12 for three bases, R_ab = Qa^T Qb, in float64.

    R_01 R_12 - R_02 = -Q0^T (I - Q1 Q1^T) Q2: the two projections outside span(Q1), multiplied. So the error sees the
    tilt of the spans alone. It is 0 for any matrices where Q1 is square (Q1 Q1^T = I), as on the short side of a full
    decomposition, and it does not change when the columns of a basis are turned among themselves (Q -> Q H, H
    orthogonal), so singular directions that turn within the column space leave no trace in it. Nothing larger than
    r x r is formed.
    """
    direct = rotation(q0, q2)
    difference = torch.addmm(direct, rotation(q0, q1), rotation(q1, q2), beta=-1)
    norm = torch.linalg.matrix_norm(difference).item()
    return Composition(
        mse=norm**2 / difference.numel(),
        relative=norm / torch.linalg.matrix_norm(direct).item() if norm > 0 else 0.0,
    )
