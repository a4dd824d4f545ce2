import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.svd import SVD, svd
from subspacelab.rotation.chain import Weight
from subspacelab.rotation.metrics import measure_change, measure_course, measure_rotation

M, N, R, K = 40, 30, 12, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(u: Tensor, s: Tensor, v: Tensor) -> Weight:
    return Weight(SVD(u, s, v.T, "lapack"), (u * s) @ v.T)


def turned(q: Tensor, complement: Tensor, angles: Tensor) -> Tensor:
    """`q` with its leading columns turned by `angles` towards those of `complement`."""
    k = len(angles)
    lead = q[:, :k] * angles.cos() + complement[:, :k] * angles.sin()
    return torch.cat([lead, q[:, k:]], dim=1)


@pytest.fixture
def frames() -> tuple[Tensor, Tensor]:
    """Orthonormal columns in R^M and R^N: the first R are the bases, the next K their complement."""
    return random_orthonormal(M, R + K, generator(1)), random_orthonormal(N, R + K, generator(2))


S = torch.linspace(3, 1, R, dtype=torch.float64)


@pytest.mark.parametrize("largest", [1e-9, 1e-4, 0.1, 1.2, math.pi / 2])
def test_planted_angles_come_back(frames: tuple[Tensor, Tensor], largest: float) -> None:
    u, v = frames
    left = torch.linspace(0.2, 1, K, dtype=torch.float64) * largest
    right = left / 2
    a = weight(u[:, :R], S, v[:, :R])
    b = weight(turned(u[:, :R], u[:, R:], left), S, turned(v[:, :R], v[:, R:], right))
    got = measure_change(a, b, K)
    # 1e-9 relative; at 1e-9 rad the float64 rounding of the bases (1e-16) is itself 1e-7 of the angle.
    tolerance = max(1e-9, 5e-16 / largest)
    degrees = math.degrees(largest)
    assert got.angle_max_U == pytest.approx(degrees, rel=tolerance)
    assert got.angle_max_Vh == pytest.approx(degrees / 2, rel=2 * tolerance)
    assert got.angle_max == got.angle_max_U
    assert got.angle_mean_U == pytest.approx(math.degrees(left.mean().item()), rel=tolerance)
    assert got.angle_mean == pytest.approx((got.angle_mean_U + got.angle_mean_Vh) / 2, rel=1e-15)
    assert got.nss == 0


def test_angles_agree_with_scipy() -> None:
    a, b = torch.randn(2, M, N, generator=generator(), dtype=torch.float64)
    (ua, sa, vha), (ub, sb, vhb) = (torch.linalg.svd(x, full_matrices=False) for x in (a, a + 0.1 * b))
    got = measure_change(weight(ua, sa, vha.T), weight(ub, sb, vhb.T), K)
    left = np.degrees(subspace_angles(ua[:, :K].numpy(), ub[:, :K].numpy()))
    right = np.degrees(subspace_angles(vha[:K].T.numpy(), vhb[:K].T.numpy()))
    assert got.angle_max_U == pytest.approx(left.max(), rel=1e-10)
    assert got.angle_max_Vh == pytest.approx(right.max(), rel=1e-10)
    assert got.angle_mean == pytest.approx((left.mean() + right.mean()) / 2, rel=1e-10)
    assert got.angle_max == max(got.angle_max_U, got.angle_max_Vh)


def test_update_measures_agree_with_numpy() -> None:
    a = torch.randn(M, N, generator=generator(3))
    b = a.clone()
    b[: M // 2] += 0.05 * torch.randn(M // 2, N, generator=generator(4))
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    before, after = Weight(SVD(u, s, vh, "lapack"), a), Weight(SVD(u, s, vh, "lapack"), b)
    got = measure_change(before, after, K)
    d = (b - a).double().numpy()
    # The update is had in float32: 6e-8 of each of its entries.
    assert got.update_norm == pytest.approx(np.linalg.norm(d) / np.linalg.norm(a.double().numpy()), rel=1e-6)
    assert got.update_stable_rank == pytest.approx((np.linalg.norm(d) / np.linalg.norm(d, 2)) ** 2, rel=1e-6)
    assert got.unchanged == pytest.approx((d == 0).mean(), abs=2 / d.size)  # an entry that hardly moved may not show
    inside = np.linalg.norm(u[:, :K].T.numpy() @ d @ vh[:K].T.numpy()) ** 2 / np.linalg.norm(d) ** 2
    assert got.principal_energy == pytest.approx(inside / (K / M * K / N), rel=1e-6)


def test_intruders_are_directions_the_base_has_not(frames: tuple[Tensor, Tensor]) -> None:
    u, v = frames
    a = weight(u[:, :R], S, v[:, :R])
    b = weight(torch.cat([u[:, R : R + 3], u[:, : R - 3]], dim=1), S, v[:, :R])
    assert measure_change(a, b, K).intruders == 3
    assert measure_change(a, a, K).intruders == 0


def test_without_entries_the_update_is_unknown(frames: tuple[Tensor, Tensor]) -> None:
    u, v = frames
    a = Weight(SVD(u[:, :R], S, v[:, :R].T, "lapack"), None)
    got = measure_change(a, a, K)
    assert (got.update_norm, got.update_stable_rank, got.unchanged, got.principal_energy) == (None,) * 4
    assert got.angle_max < 1e-12
    assert measure_course(a, a, a) is None


def test_a_chain_built_to_compose_gives_zero() -> None:
    q0, q2 = random_orthonormal(M, R, generator(5)), random_orthonormal(M, R, generator(6))
    q1 = q0 @ random_orthonormal(R, R, generator(7))  # spans what q0 spans: Q1 Q1^T Q0 = Q0
    got = measure_rotation(q0, q1, q2, generator(8))
    assert got.mse < 1e-30  # squares of float64 rounding
    assert got.relative < 1e-14
    assert not got.identity
    assert got.oracle_mse < 1e-30
    assert got.random_mse > 1e-4


def test_a_chain_built_not_to_gives_the_value_of_numpy() -> None:
    q0, q1, q2 = (random_orthonormal(M, R, generator(seed)) for seed in (9, 10, 11))
    got = measure_rotation(q0, q1, q2, generator(12))
    a, b, c = (q.numpy() for q in (q0, q1, q2))
    wrong = (a.T @ b) @ (b.T @ c) - a.T @ c
    assert got.mse == pytest.approx(np.mean(wrong**2), rel=1e-9)
    assert got.relative == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(a.T @ c), rel=1e-9)


def test_a_square_middle_basis_proves_nothing() -> None:
    q0, q1, q2 = (random_orthonormal(R, R, generator(seed)) for seed in (13, 14, 15))
    got = measure_rotation(q0, q1, q2, generator(16))
    assert got.identity
    assert max(got.mse, got.random_mse, got.oracle_mse) < 1e-30  # whatever the bases are


def test_the_random_control_is_seeded_and_what_is_expected_of_chance() -> None:
    q0 = random_orthonormal(M, R, generator(17))
    one, two = (measure_rotation(q0, q0, q0, generator(18)) for _ in range(2))
    assert one == two
    # With Q0 = Q2 and P of rank R at random, Q0^T P Q0 - I has mean diagonal R/M - 1; off it lies var O(1/M).
    assert one.random_mse == pytest.approx((1 - R / M) ** 2 / R, rel=0.5)


@pytest.mark.parametrize(("step", "cosine"), [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)])
def test_course_tells_on_from_back(step: float, cosine: float) -> None:
    w = torch.randn(M, N, generator=generator(19))
    d = torch.ones(M, N)
    chain = [Weight(svd(w + t * d), w + t * d) for t in (0.0, 1.0, 1.0 + step)]
    got = measure_course(*chain)
    assert got == pytest.approx(cosine, abs=1e-6)  # float32 sums of w and d
