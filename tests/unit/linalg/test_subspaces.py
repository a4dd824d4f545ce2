"""Principal angles: planted ones come back to 1e-9, from 1e-9 rad to pi/2."""

import math

import pytest
import scipy.linalg
import torch
from tests.unit.linalg.matrices import gaussian, seeded

from subspacelab.linalg.subspaces import principal_angles, random_orthonormal


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
