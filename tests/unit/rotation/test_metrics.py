import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.svd import SVD, svd
from subspacelab.rotation.metrics import (
    generator_for,
    measure_change,
    measure_course,
    measure_rotation,
    measure_weight,
    pair_column,
)
from subspacelab.rotation.weight import Weight

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


def weight_of(w: torch.Tensor) -> Weight:
    return Weight(svd(w), w)


def chain(m: int, n: int) -> tuple[Weight, Weight, Weight]:
    noise = torch.randn(3, m, n, generator=torch.Generator().manual_seed(0))
    w0, w1, w2 = noise[0], noise[0] + 0.02 * noise[1], noise[0] + 0.02 * noise[1] + 0.02 * noise[2]
    return weight_of(w0), weight_of(w1), weight_of(w2)


def test_the_side_comes_last_in_a_column() -> None:
    assert pair_column("angle_max_U", "01") == "angle_max_01_U"
    assert pair_column("angle_max", "12") == "angle_max_12"
    assert pair_column("update_norm", "02") == "update_norm_02"


def test_identities_are_told_by_the_shape() -> None:
    for shape, expected in (((24, 8), (False, True)), ((8, 24), (True, False)), ((8, 8), (True, True))):
        row = measure_weight("w", chain(*shape), k=4, seed=0)
        assert (row["identity_U"], row["identity_Vh"]) == expected


def test_k_is_cut_to_the_rank_and_64_by_default() -> None:
    assert measure_weight("w", chain(20, 12), k=50, seed=0)["k"] == 12
    assert measure_weight("w", chain(80, 70), k=None, seed=0)["k"] == 64


def test_a_gap_past_the_last_value_is_undefined() -> None:
    assert measure_weight("w", chain(20, 12), k=12, seed=0)["gap_k"] is None
    gap = measure_weight("w", chain(20, 12), k=3, seed=0)["gap_k"]
    s = chain(20, 12)[0].svd.S
    assert gap == s[2].item() / s[3].item()


@pytest.mark.parametrize(("gap", "blank"), [(1.04, True), (1.06, False)])
def test_the_largest_angle_is_told_where_the_gap_at_k_determines_it(gap: float, blank: bool) -> None:
    s = torch.linspace(2, 1, 8)
    s[:4] += gap * s[4] - s[3]
    base = torch.diag(s)
    row = measure_weight("w", (weight_of(base), weight_of(base + 1e-3), weight_of(base - 1e-3)), k=4, seed=0)
    assert row["gap_k"] == pytest.approx(gap, rel=1e-6)
    largest = {c: row[c] is None for c in row if "angle_max" in c}
    assert set(largest.values()) == {blank}
    assert {"angle_max_01", "angle_max_12_U", "angle_max_02_Vh", "floor_angle_max", "floor_angle_max_U"} < set(largest)
    assert all(row[c] is not None for c in row if "angle_mean" in c)


def test_a_zero_base_has_undefined_ratios_and_no_error() -> None:
    zero, one = weight_of(torch.zeros(10, 6)), weight_of(torch.ones(10, 6))
    row = measure_weight("w", (zero, one, one), k=2, seed=0)
    assert row["nss_01"] is None
    assert row["update_norm_01"] is None
    assert row["update_norm_12"] == 0


def test_generators_depend_on_seed_and_name_only() -> None:
    first = torch.rand(1, generator=generator_for(1, "a", "floor"))
    assert torch.equal(first, torch.rand(1, generator=generator_for(1, "a", "floor")))
    assert not torch.equal(first, torch.rand(1, generator=generator_for(2, "a", "floor")))
    assert not torch.equal(first, torch.rand(1, generator=generator_for(1, "b", "floor")))
