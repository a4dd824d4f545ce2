"""Where an update lies (planted inside or outside a frame, and against numpy), and intruder dimensions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from tests.unit.linalg.matrices import gaussian, seeded

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.updates import (
    intruder_dimensions,
    principal_energy,
    random_cosine_deviation,
    random_energy_deviation,
    update_cosine,
)


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


def test_a_random_update_has_one_and_the_deviation_that_is_told(frame):
    u, v = frame[0][:, :8], frame[1]
    energies = [principal_energy(gaussian(50, 40, seed), u, v) for seed in range(200)]
    # 64 squared Gaussians in the frame: 18 % each, 1.3 % over 200 draws; their deviation is known to 5 %.
    assert np.mean(energies) == pytest.approx(1, abs=0.06)
    assert np.std(energies) == pytest.approx(random_energy_deviation(50, 40, 8), rel=0.2)
    inside, outside = 8 * 8 / 2, (50 * 40 - 8 * 8) / 2
    exact = scipy.stats.beta(inside, outside).std() / (8 / 50 * 8 / 40)
    assert random_energy_deviation(50, 40, 8) == pytest.approx(exact, rel=1e-12)


def test_the_cosine_with_a_random_update_has_the_deviation_that_is_told():
    d = gaussian(30, 20)
    cosines = [update_cosine(d, gaussian(30, 20, seed)) for seed in range(1, 301)]
    # 300 draws: the mean to 0.06 deviations, the deviation to 4 %.
    assert abs(np.mean(cosines)) < 0.25 * random_cosine_deviation(30, 20)
    assert np.std(cosines) == pytest.approx(random_cosine_deviation(30, 20), rel=0.2)


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


@pytest.fixture
def basis():
    return random_orthonormal(80, 40, seeded(0))


def test_old_directions_do_not_count(basis):
    assert intruder_dimensions(basis[:, :20], basis[:, :20]) == 0
    assert intruder_dimensions(basis[:, :20], -basis[:, :20].flip(1)) == 0


def test_planted_intruders_are_counted(basis):
    tuned = basis[:, :20].clone()
    tuned[:, [2, 5, 15]] = basis[:, 20:23]
    assert intruder_dimensions(basis[:, :20], tuned) == 2  # the third stands behind the first ten
    assert intruder_dimensions(basis[:, :20], tuned, k=16) == 3
    assert intruder_dimensions(basis[:, :20], tuned, k=100) == 3


@pytest.mark.parametrize(("cosine", "count"), [(0.45, 1), (0.55, 0)])
def test_the_threshold(basis, cosine, count):
    tuned = basis[:, :1] * cosine + basis[:, 30:31] * (1 - cosine**2) ** 0.5
    assert intruder_dimensions(basis[:, :20], tuned) == count
    assert intruder_dimensions(basis[:, :20], torch.zeros(80, 1).double()) == 1
