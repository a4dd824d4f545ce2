"""Where an update lies: planted inside or outside a frame, and against numpy."""

import math

import numpy as np
import pytest
import torch
from tests.linalg.matrices import gaussian, seeded

from subspacelab.linalg.orthonormal import random_orthonormal
from subspacelab.linalg.update_geometry import principal_energy, unchanged_share, update_cosine


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


def test_unchanged_share():
    a = torch.tensor([[1.0, 1.0, 0.0, -2.0], [0.0, 3.0, 1.0, 1.0]])
    b = torch.tensor([[1.0, 1.0005, 0.0, 2.0], [1e-9, 3.0, 1.002, 0.9995]])
    # unchanged: 1, 1.0005 (5e-4), 0, 3, 0.9995; changed: the sign, the entry that was 0, 1.002 (2e-3)
    assert unchanged_share(a, b) == 5 / 8
    assert unchanged_share(a, b, eta=1e-5) == 3 / 8
    assert unchanged_share(a, a) == 1


def test_bf16_rounding_counts_as_unchanged_at_its_own_eta():
    w = gaussian(60, 60).float()
    assert unchanged_share(w, w.bfloat16(), eta=2**-8) == 1


def test_update_cosine():
    d = gaussian(30, 20)
    assert update_cosine(d, 3 * d) == pytest.approx(1, rel=1e-12)
    assert update_cosine(d, -d) == pytest.approx(-1, rel=1e-12)
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[0, 0] = right[0, 0] = right[1, 1] = 1
    assert update_cosine(left, right) == pytest.approx(math.sqrt(0.5), rel=1e-12)
    assert update_cosine(torch.zeros(30, 20), d.float()) == 0
