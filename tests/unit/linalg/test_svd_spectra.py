"""Spectral measures on spectra whose values are known in closed form."""

import math

import numpy as np
import pytest
import torch
from tests.unit.linalg.matrices import gaussian, planted

from subspacelab.linalg.svd import normalised_spectral_shift, spectral_gap, stable_rank


def test_spectral_shift():
    a = torch.tensor([4.0, 3.0], dtype=torch.float64)
    assert normalised_spectral_shift(a, 1.1 * a) == pytest.approx(0.1, rel=1e-12)
    assert normalised_spectral_shift(a, a) == 0
    assert normalised_spectral_shift(torch.zeros(3), torch.zeros(3)) == 0
    assert math.isinf(normalised_spectral_shift(torch.zeros(2), a.float()))


def test_spectral_shift_is_at_most_the_relative_update():
    for seed in range(20):
        w, d = gaussian(30, 20, seed), 0.3 * gaussian(30, 20, 50 + seed)
        shift = normalised_spectral_shift(torch.linalg.svdvals(w), torch.linalg.svdvals(w + d))
        assert shift <= (d.norm() / w.norm()).item() * (1 + 1e-12)  # Mirsky


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_stable_rank(shape):
    s = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert stable_rank(planted(*shape, s)) == pytest.approx(6 / 4, rel=1e-12)
    assert stable_rank(torch.zeros(shape)) == 0
    w = gaussian(*shape)
    n = w.numpy()
    expected = np.linalg.norm(n, "fro") ** 2 / np.linalg.norm(n, 2) ** 2
    assert stable_rank(w) == pytest.approx(expected, rel=1e-12)


def test_spectral_gap():
    s = torch.tensor([8.0, 4.0, 1.0, 0.0])
    assert spectral_gap(s, 1) == 2
    assert spectral_gap(s, 2) == 4
    assert math.isinf(spectral_gap(s, 3))
    assert math.isinf(spectral_gap(s, 4))
    with pytest.raises(ValueError, match="k = 5 of 4 singular values: choose 1 <= k <= 4"):
        spectral_gap(s, 5)
