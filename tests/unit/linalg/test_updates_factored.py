"""What is said of a product of factors is what its dense matrix says, and random frames vary as is said."""

import math

import numpy as np
import pytest
import torch
from tests.unit.linalg.matrices import gaussian, planted, seeded

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.updates import (
    effective_rank,
    factored_energy,
    norms_of_sum,
    principal_energy,
    product_svd,
    random_energy_deviation,
    random_frames_deviation,
)


@pytest.mark.parametrize(("m", "q", "n"), [(60, 4, 40), (40, 4, 60), (50, 1, 50), (8, 12, 30), (30, 12, 8), (5, 9, 7)])
def test_the_spectrum_is_that_of_the_dense_product(m: int, q: int, n: int) -> None:
    left, right = gaussian(m, q), gaussian(q, n, 1)
    found = product_svd(left, right)
    dense = torch.linalg.svdvals(left @ right)
    assert torch.allclose(found.S, dense[: len(found.S)], rtol=1e-12, atol=1e-12 * dense[0].item())
    assert torch.allclose((found.U * found.S) @ found.V.T, left @ right, atol=1e-12 * dense[0].item())
    for basis in (found.U, found.V):
        assert torch.allclose(basis.T @ basis, torch.eye(len(found.S), dtype=torch.float64), atol=1e-13)


def test_planted_singular_values_come_back_over_twelve_decades() -> None:
    """Factors of singular values as far apart as float64 allows, where a Gram matrix would lose the lower half."""
    s = torch.logspace(0, -12, 5, dtype=torch.float64)
    u, v = random_orthonormal(50, 5, seeded(0)), random_orthonormal(30, 5, seeded(1))
    assert torch.allclose(product_svd(u * s, v.T).S, s, rtol=1e-3, atol=0)


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    p = np.array([3.0, 2, 1]) / 6
    assert effective_rank(torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_the_energy_is_that_of_the_dense_product() -> None:
    left, right = gaussian(50, 3), gaussian(3, 40, 1)
    u, v = random_orthonormal(50, 8, seeded(2)), random_orthonormal(40, 8, seeded(3))
    dense = principal_energy(left @ right, u, v)
    assert factored_energy(product_svd(left, right), u, v) == pytest.approx(dense, rel=1e-12)
    inside = product_svd(u @ gaussian(8, 2, 4), gaussian(2, 8, 5) @ v.T)
    assert factored_energy(inside, u, v) == pytest.approx((50 / 8) * (40 / 8), rel=1e-12)
    assert factored_energy(product_svd(torch.zeros(50, 2), torch.zeros(2, 40)), u, v) == 0


@pytest.mark.parametrize("s", [[1.0], [2.0, 1.0, 0.5], [1.0] * 12])
def test_random_frames_have_the_mean_and_deviation_that_are_told(s: list[float]) -> None:
    m, n, k, values = 30, 24, 6, torch.tensor(s, dtype=torch.float64)
    u, v = random_orthonormal(m, k, seeded(0)), random_orthonormal(n, k, seeded(1))
    g = seeded(2)
    energies = []
    for _ in range(2000):
        left, right = random_orthonormal(m, len(s), g), random_orthonormal(n, len(s), g)
        energies.append(factored_energy(product_svd(left * values, right.T), u, v))
    told = random_frames_deviation(values, m, n, k)
    assert np.mean(energies) == pytest.approx(1, abs=4 * told / math.sqrt(2000))
    assert np.std(energies) == pytest.approx(told, rel=0.1)  # 1.6 % of a normal, more of a skewed share


def test_of_a_gaussian_spectrum_it_is_near_that_of_a_gaussian_update() -> None:
    m, n, k = 80, 60, 16
    deviations = [random_frames_deviation(torch.linalg.svdvals(gaussian(m, n, seed)), m, n, k) for seed in range(20)]
    assert np.mean(deviations) == pytest.approx(random_energy_deviation(m, n, k), rel=0.02)
    assert random_frames_deviation(torch.ones(1), m, n, k) > 5 * random_energy_deviation(m, n, k)
    assert random_frames_deviation(torch.ones(5), m, n, n) == pytest.approx(
        random_frames_deviation(torch.ones(5), n, m, n), rel=1e-12
    )


def test_a_whole_frame_holds_everything() -> None:
    assert random_frames_deviation(torch.tensor([2.0, 1.0]), 7, 7, 7) == pytest.approx(0, abs=1e-7)


def test_row_norms_of_a_sum() -> None:
    w, left, right = planted(40, 30, torch.linspace(1, 0.1, 30)).float(), gaussian(40, 3), gaussian(3, 30, 1)
    dense = torch.linalg.vector_norm(w.double() + left @ right, dim=1)
    assert torch.allclose(norms_of_sum(w, left, right), dense, rtol=1e-12)
