"""Leading triples and all singular values of a large matrix, beside NumPy's and `svd`'s."""

import numpy as np
import pytest
import torch

from subspacelab.linalg.svd import stable_rank, svd
from subspacelab.linalg.updates import intruder_dimensions
from subspacelab.rotation import leading
from subspacelab.rotation.leading import leading_svd, overlaps, singular_values, stable_rank_of
from subspacelab.rotation.metrics import count_intruders
from subspacelab.rotation.weight import Weight

K = 12


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of a test are large, and have several panels."""
    monkeypatch.setattr(leading, "SMALLEST", 60)
    monkeypatch.setattr(leading, "PANEL", 25)


def matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return (u * s * torch.logspace(0, -2, len(s), dtype=torch.float64)) @ vh


@pytest.mark.parametrize("shape", [(90, 90), (160, 70), (70, 160)])
def test_they_are_those_of_all_triples(shape: tuple[int, int]) -> None:
    w = matrix(*shape)
    found, full = leading_svd(w, K), svd(w)
    assert found is not None
    exact = torch.from_numpy(np.linalg.svd(w.numpy(), compute_uv=False))
    # They are stored in float32, and roots of a Gram matrix's eigenvalues, each of which is off by up to eps s_1^2.
    error = torch.finfo(torch.float32).eps * exact + torch.finfo(torch.float64).eps * exact[0] ** 2 / exact
    assert ((found.spectrum.double() - exact).abs() <= error).all()
    assert ((singular_values(w).double() - exact).abs() <= error).all()
    for got, wanted in ((found.svd.U, full.U[:, :K]), (found.svd.S, full.S[:K]), (found.svd.Vh, full.Vh[:K])):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert stable_rank_of(w) == pytest.approx(stable_rank(w), rel=1e-12)
    d = torch.nn.functional.normalize(matrix(shape[0], 5, seed=1), dim=0)
    torch.testing.assert_close(overlaps(w, d).flip(0).abs(), (full.U.double().T @ d).abs(), rtol=1e-4, atol=1e-5)


def test_where_all_triples_are_the_better_there_are_none() -> None:
    assert leading_svd(matrix(59, 90), K) is None  # small
    assert leading_svd(matrix(90, 70), 18) is None  # over a quarter
    assert leading_svd(matrix(90, 70)[:, :K] @ matrix(K, 70), K + 1) is None  # of lower rank
    assert leading_svd(torch.zeros(90, 70), K) is None


@pytest.mark.parametrize("share", [0.0, 0.4, 0.6, 1.0])
def test_intruders_are_found_by_the_leading_directions_or_by_all(share: float) -> None:
    """The tuned weight's first direction lies by `share` in a weak direction of the base, else in strong ones."""
    w = matrix(100, 80)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    new = share * u[:, 70] + (1 - share**2) ** 0.5 * u[:, :9].sum(dim=1) / 3
    tuned = w + 5 * s[0] * torch.outer(new, vh[60])
    a, b = Weight.of(w, K), Weight.of(tuned, K)
    assert a.is_partial
    assert b.is_partial
    assert count_intruders(a, b) == intruder_dimensions(svd(w).U, svd(tuned).U)
