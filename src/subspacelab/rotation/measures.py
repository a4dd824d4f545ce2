"""What is measured of one weight: whether its rotations compose, and how two checkpoints of it differ."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.composition import composition_error
from subspacelab.linalg.intruders import intruder_dimensions
from subspacelab.linalg.orthonormal import random_orthonormal
from subspacelab.linalg.principal_angles import principal_angles
from subspacelab.linalg.spectra import normalised_spectral_shift, stable_rank
from subspacelab.linalg.update_geometry import principal_energy, update_cosine
from subspacelab.rotation.weights import Weight, subtract


@dataclass(frozen=True)
class Rotation:
    """The claim R_02 = R_01 R_12 on one side of one weight, beside its controls.

    R_01 R_12 - R_02 = -Q_0^T (I - Q_1 Q_1^T) Q_2: on the tall side it measures how far the column space tilts, on the
    square side it is an identity, and turns of the directions within the space are invisible to it.
    """

    mse: float
    """Mean squared entry of R_01 R_12 - R_02."""
    relative: float
    """Frobenius norm of the difference over that of R_02."""
    identity: bool
    """Whether the middle basis is square: then Q_1 Q_1^T = I and the claim holds for any matrices at all."""
    random_mse: float
    """The MSE with a random orthonormal middle basis of the same shape: what no relation looks like."""
    oracle_mse: float
    """The MSE with the end point as the middle basis: what a perfect relation looks like."""


def measure_rotation(
    q0: Float[Tensor, "m r"], q1: Float[Tensor, "m r"], q2: Float[Tensor, "m r"], generator: torch.Generator
) -> Rotation:
    """Tests R_02 = R_01 R_12, R_ab = Q_a^T Q_b, for the singular bases of a chain of three (columns), in float64."""
    found = composition_error(q0, q1, q2)
    random = random_orthonormal(q1.shape[0], q1.shape[1], generator).to(q1.device)
    return Rotation(
        mse=found.mse,
        relative=found.relative,
        identity=q1.shape[0] == q1.shape[1],
        random_mse=composition_error(q0, random, q2).mse,
        oracle_mse=composition_error(q0, q2, q2).mse,
    )


@dataclass(frozen=True)
class Change:
    """How checkpoint b of a weight differs from checkpoint a; the names are those of the columns."""

    angle_mean: float
    """Mean principal angle of the leading k directions over both sides, degrees."""
    angle_mean_U: float
    """The left side's, degrees."""
    angle_mean_Vh: float
    """The right side's, degrees."""
    angle_max: float
    """Largest principal angle of both sides, degrees."""
    angle_max_U: float
    """The left side's, degrees."""
    angle_max_Vh: float
    """The right side's, degrees."""
    nss: float
    """Normalised spectral shift ||s_b - s_a|| / ||s_a||."""
    intruders: int
    """Leading directions of b (10 at most) that no direction of a is near (|cos| < 0.5)."""
    update_norm: float | None
    """||W_b - W_a||_F / ||W_a||_F; None, as the three below, where the entries are not to be had."""
    update_stable_rank: float | None
    """||D||_F^2 / ||D||_2^2 of D = W_b - W_a; 0 without an update."""
    unchanged: float | None
    """Share of entries stored unchanged, as far as the factors tell (see `weights.subtract`)."""
    principal_energy: float | None
    """Share of ||D||_F^2 inside the leading-k frame of a, over that of a random update; 0 without an update."""


def measure_change(a: Weight, b: Weight, k: int) -> Change:
    """Measures b against a, angles and principal frame by the leading `k` directions."""
    left = principal_angles(a.svd.U[:, :k], b.svd.U[:, :k]).rad2deg()
    right = principal_angles(a.V[:, :k], b.V[:, :k]).rad2deg()
    left_mean, right_mean = left.mean().item(), right.mean().item()
    return Change(
        angle_mean=(left_mean + right_mean) / 2,
        angle_mean_U=left_mean,
        angle_mean_Vh=right_mean,
        angle_max=max(left.max().item(), right.max().item()),
        angle_max_U=left.max().item(),
        angle_max_Vh=right.max().item(),
        nss=normalised_spectral_shift(a.svd.S, b.svd.S),
        intruders=intruder_dimensions(a.svd.U, b.svd.U),
        **_measure_update(a, b, k),
    )


def _measure_update(a: Weight, b: Weight, k: int) -> dict[str, float | None]:
    if a.dense is None or b.dense is None:
        return dict.fromkeys(("update_norm", "update_stable_rank", "unchanged", "principal_energy"))
    update = subtract(b, a)
    size = torch.linalg.vector_norm(a.svd.S.double()).item()  # ||W_a||_F, from its singular values
    return {
        "update_norm": torch.linalg.vector_norm(update, dtype=torch.float64).item() / (size or math.nan),
        "update_stable_rank": stable_rank(update),
        "unchanged": 1 - int(update.count_nonzero()) / update.numel(),
        "principal_energy": principal_energy(update, a.svd.U[:, :k], a.V[:, :k]),
    }


def measure_course(w0: Weight, w1: Weight, w2: Weight) -> float | None:
    """cos(W_1 - W_0, W_2 - W_1): 1 where the second stage goes on, -1 where it goes back, 0 without an update."""
    if w0.dense is None or w1.dense is None or w2.dense is None:
        return None
    return update_cosine(subtract(w1, w0), subtract(w2, w1))
