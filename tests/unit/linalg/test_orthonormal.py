"""Random bases: orthonormal, seeded, and uniform in direction."""

import pytest
import torch
from tests.unit.linalg.matrices import seeded

from subspacelab.linalg.subspaces import random_orthonormal


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
