"""Where an update lies: planted inside or outside a frame, and against numpy."""

import math

import numpy as np
import pytest
import torch
from tests.linalg.matrices import gaussian, seeded

from subspacelab.linalg.orthonormal import random_orthonormal
from subspacelab.linalg.update_geometry import principal_energy, update_cosine


@pytest.fixture
def frame():
    g = seeded(0)
    return random_orthonormal(50, 10, g), random_orthonormal(40, 8, g)


def test_update_inside_or_outside_the_frame(frame):
    u, v = frame[0][:, :5], frame[1][:, :5]
    inside = u @ gaussian(5, 5) @ v.T
    assert principal_energy(inside, u, v) == pytest.approx((50 / 5) * (40 / 5), rel=1e-12)
    outside = frame[0][:, 5:] @ gaussian(5, 3) @ frame[1][:, 5:].T
    assert principal_energy(outside, u, v) == pytest.approx(0, abs=1e-24)
    assert principal_energy(torch.zeros(50, 40), u, v) == 0


def test_a_random_update_has_one(frame):
    u, v = frame[0][:, :8], frame[1]
    energies = [principal_energy(gaussian(50, 40, seed), u, v) for seed in range(200)]
    # 64 squared Gaussians in the frame: 18 % each, 1.3 % over 200 draws.
    assert np.mean(energies) == pytest.approx(1, abs=0.06)


def test_principal_energy_against_numpy(frame):
    delta, u, v = gaussian(50, 40, 9), frame[0][:, :8], frame[1]
    inside = np.linalg.norm(u.numpy().T @ delta.numpy() @ v.numpy()) ** 2
    expected = inside / np.linalg.norm(delta.numpy()) ** 2 / (8 / 50 * 8 / 40)
    assert principal_energy(delta, u, v) == pytest.approx(expected, rel=1e-12)


def test_update_cosine():
    d = gaussian(30, 20)
    assert update_cosine(d, 3 * d) == pytest.approx(1, rel=1e-12)
    assert update_cosine(d, -d) == pytest.approx(-1, rel=1e-12)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[0, 0] = right[0, 0] = right[1, 1] = 1
    assert update_cosine(left, right) == pytest.approx(math.sqrt(0.5), rel=1e-12)
    assert update_cosine(torch.zeros(30, 20), d.float()) == 0
