"""Intruder dimensions: new leading directions are counted, old ones in another order or sign are not."""

import pytest
import torch
from tests.unit.linalg.matrices import seeded

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.updates import intruder_dimensions


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
