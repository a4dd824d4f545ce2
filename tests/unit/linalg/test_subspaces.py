"""Subspaces: random bases, principal angles to 1e-9, and the error of a composition R_02 = R_01 R_12."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from tests.unit.linalg.matrices import gaussian, seeded

from subspacelab.linalg.subspaces import composition_error, principal_angles, random_orthonormal, rotation, span_of


def turned(angles: torch.Tensor, m: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two bases at exactly these angles, each in coordinates of its own."""
    k, g = len(angles), seeded(seed)
    q = random_orthonormal(m, 2 * k, g)
    a, b = q[:, :k], q[:, :k] * angles.cos() + q[:, k:] * angles.sin()
    return a @ random_orthonormal(k, k, g), b @ random_orthonormal(k, k, g)


@pytest.mark.parametrize("angle", [1e-7, 1e-6, 1e-3, 0.1, math.pi / 4, 1.0, 1.5, math.pi / 2 - 1e-6, math.pi / 2])
def test_one_planted_angle(angle):
    planted = torch.full((3,), angle, dtype=torch.float64)
    a, b = turned(planted)
    # 1e-9 relative; below 1e-7 rad float64 coordinates themselves are only good to 1e-16 absolute.
    torch.testing.assert_close(principal_angles(a, b), planted, rtol=1e-9, atol=1e-15)


def test_planted_angles_of_all_sizes_in_unmixed_bases():
    sizes = [1e-9, 1e-6, 1e-3, 0.5, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2]
    angles = torch.tensor(sizes, dtype=torch.float64)
    eye = torch.eye(16, dtype=torch.float64)
    a, b = eye[:, :8], eye[:, :8] * angles.cos() + eye[:, 8:] * angles.sin()
    torch.testing.assert_close(principal_angles(a, b), angles, rtol=1e-9, atol=0)


def test_identical_spaces():
    a, _ = turned(torch.zeros(10, dtype=torch.float64))
    mixed = a @ gaussian(10, 10, 5)
    assert principal_angles(a, a).max() < 1e-12
    assert principal_angles(a, mixed).max() < 1e-12


def test_float32_bases_of_one_space_show_no_angle():
    a = random_orthonormal(256, 32, seeded(1), torch.float32)
    assert principal_angles(a, a).max() < 1e-12  # arccos in float32 says 1e-3


@pytest.mark.parametrize(("m", "k"), [(40, 7), (20, 15), (9, 9), (30, 1)])
def test_agrees_with_scipy(m, k):
    a, b = gaussian(m, k, 1), gaussian(m, k, 2)
    found, shared = principal_angles(a, b), max(0, 2 * k - m)
    # Dimensions: spaces of 2k > m directions share 2k - m. scipy is no reference there: it may take those angles by
    # arccos, which has 0 to sqrt(2 eps) = 2e-8 only, on some CPUs.
    assert (found[:shared] < 1e-12).all()
    reference = torch.from_numpy(scipy.linalg.subspace_angles(a.numpy(), b.numpy())[::-1].copy())
    torch.testing.assert_close(found[shared:], reference[shared:], rtol=1e-9, atol=1e-12)


def test_symmetric_ascending_and_triangle_inequality():
    for seed in range(200):
        g = seeded(seed)
        a, b, c = (random_orthonormal(12, 4, g) for _ in range(3))
        ab, bc, ac = principal_angles(a, b), principal_angles(b, c), principal_angles(a, c)
        assert (ab.diff() >= 0).all()
        torch.testing.assert_close(ab, principal_angles(b, a), rtol=0, atol=1e-12)
        assert ac[-1] <= ab[-1] + bc[-1] + 1e-12


def test_wedin_bounds_the_turn_by_the_update():
    w, k = torch.diag(torch.tensor([4.0, 3, 1, 0.5])).double(), 2
    delta = 0.01 * gaussian(4, 4, 3)
    u, v = torch.linalg.svd(w).U[:, :k], torch.linalg.svd(w + delta).U[:, :k]
    gap = 3 - torch.linalg.svdvals(w + delta)[k]
    assert principal_angles(u, v)[-1].sin() <= torch.linalg.matrix_norm(delta, 2) / gap


@pytest.mark.parametrize(("m", "k"), [(50, 1), (50, 20), (50, 50)])
def test_orthonormal(m, k):
    q = random_orthonormal(m, k, seeded(0))
    torch.testing.assert_close(q.T @ q, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-13)


def test_seed_decides():
    assert torch.equal(random_orthonormal(30, 5, seeded(1)), random_orthonormal(30, 5, seeded(1)))
    assert not torch.equal(random_orthonormal(30, 5, seeded(1)), random_orthonormal(30, 5, seeded(2)))
    assert random_orthonormal(30, 5, seeded(1), torch.float32).dtype == torch.float32


def test_haar_moments():
    g = seeded(3)
    draws = torch.stack([random_orthonormal(4, 4, g) for _ in range(4000)])
    # Haar: E q_ij = 0 and E q_ij^2 = 1/4; the standard error of 4000 draws is 0.008 and 0.005, five of them allowed.
    # A bare Householder QR fails the first on the diagonal by 0.4.
    assert draws.mean(dim=0).abs().max() < 0.04
    assert (draws.square().mean(dim=0) - 0.25).abs().max() < 0.025


def test_random_subspaces_overlap_by_chance():
    g = seeded(4)
    overlap = [(random_orthonormal(60, 6, g).T @ random_orthonormal(60, 6, g)).square().mean() for _ in range(200)]
    # E cos^2 = k/m spread over k directions: each squared entry is 1/m on average; 7200 entries give it to 1.7 %.
    assert torch.stack(overlap).mean().item() == pytest.approx(1 / 60, rel=0.08)


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_counts_are_named(k):
    with pytest.raises(ValueError, match=f"k = {k} .* m = 5: choose 1 <= k <= 5"):
        random_orthonormal(5, k, seeded(0))


def bases(m: int, r: int, seed: int = 0) -> list[torch.Tensor]:
    g = seeded(seed)
    return [random_orthonormal(m, r, g) for _ in range(3)]


def test_bases_of_one_space_compose():
    g = seeded(1)
    q = random_orthonormal(90, 20, g)
    q0, q1, q2 = (q @ random_orthonormal(20, 20, g) for _ in range(3))
    error = composition_error(q0, q1, q2)
    assert error.mse < 1e-28
    assert error.relative < 1e-13


def test_a_square_middle_basis_composes_whatever_the_others_are():
    q0, q1, q2 = bases(30, 30)
    assert composition_error(q0[:, :10], q1, q2[:, :10]).relative < 1e-13


def test_a_chain_that_does_not_compose_gives_the_numpy_value():
    q0, q1, q2 = bases(90, 20)
    a, b, c = (q.numpy() for q in (q0, q1, q2))
    direct = a.T @ c
    difference = (a.T @ b) @ (b.T @ c) - direct
    error = composition_error(q0, q1, q2)
    assert error.mse == pytest.approx(np.mean(difference**2), rel=1e-12)
    assert error.relative == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(direct), rel=1e-12)
    np.testing.assert_allclose(difference, -a.T @ (np.eye(90) - b @ b.T) @ c, atol=1e-14)


@pytest.mark.parametrize("kind", ["well conditioned", "dead column", "square"])
def test_a_span_is_as_good_as_its_basis(kind: str):
    q0, q1, q2 = bases(90, 20)
    turn = torch.diag(torch.logspace(0, -2, 20, dtype=torch.float64)) @ random_orthonormal(20, 20, seeded(3))
    a = q1 @ turn
    if kind == "dead column":
        a[:, 3] *= 1e-9
    if kind == "square":
        q0, q2, a = q0[:20], q2[:20], a[:20]
        assert composition_error(q0, span_of(a), q2).mse < 1e-28
        return
    span = span_of(a)
    basis = span.columns @ span.whitening
    torch.testing.assert_close(basis.T @ basis, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-10)
    middle, end = composition_error(q0, q1, q2), composition_error(q0, q2, q1)
    assert composition_error(q0, span, q2).mse == pytest.approx(middle.mse, rel=1e-6)
    assert composition_error(q0, q2, span).relative == pytest.approx(end.relative, rel=1e-6)


def test_turns_within_the_spans_leave_no_trace():
    g = seeded(2)
    q0, q1, q2 = bases(90, 20)
    error = composition_error(q0, q1, q2)
    scrambled = composition_error(*(q @ random_orthonormal(20, 20, g) for q in (q0, q1, q2)))
    assert scrambled.mse == pytest.approx(error.mse, rel=1e-12)
    assert scrambled.relative == pytest.approx(error.relative, rel=1e-12)


def test_the_end_points_own_basis_in_the_middle_composes():
    q0, _, q2 = bases(60, 15)
    assert composition_error(q0, q2, q2).relative < 1e-13
    same = composition_error(q0, q0, q0)
    assert (same.mse < 1e-30, same.relative < 1e-14) == (True, True)


def test_float32_bases_are_multiplied_in_float64():
    q0, q1, _ = (q.float() for q in bases(60, 15))
    torch.testing.assert_close(rotation(q0, q1), q0.double().T @ q1.double(), rtol=0, atol=1e-14)


def test_tall_bases_are_streamed(monkeypatch):
    q0, q1, q2 = bases(203, 12)
    whole = composition_error(q0, q1, q2)
    monkeypatch.setattr("subspacelab.linalg.moments.CHUNK_ENTRIES", 12 * 10)
    assert composition_error(q0, q1, q2).mse == pytest.approx(whole.mse, rel=1e-12)
