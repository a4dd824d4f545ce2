"""The bottom eigenvectors of a wide moment are those of the full decomposition."""

import pytest
import torch
from tests.unit.linalg.matrices import gaussian

from subspacelab.linalg import null_space as full
from subspacelab.linalg.subspaces import principal_angles
from subspacelab.nullspace import spectra

DIM, RANK = 60, 7


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "WIDE", DIM)


def moment(num_directions: int = DIM) -> torch.Tensor:
    x = gaussian(400, DIM) * torch.logspace(0, -3, DIM, dtype=torch.float64)
    x[:, num_directions:] = 0
    return x.T @ x


def test_few_pairs_say_what_all_of_them_say() -> None:
    c = moment()
    wanted, found = full.null_space(c, RANK), spectra.null_space(c.clone(), RANK)
    assert found.basis.shape == (RANK, DIM)
    assert len(found.eigenvalues) == RANK + 1  # so it was not the full decomposition
    # Davis-Kahan: eps * l_max over the gaps, which are a tenth of the eigenvalues of 1e-6 and more.
    assert principal_angles(found.basis.T, wanted.basis.T).max() < 1e-7
    assert (found.num_clamped, found.numerical_rank) == (wanted.num_clamped, wanted.numerical_rank) == (0, DIM)
    assert found.optimum == pytest.approx(wanted.optimum, rel=1e-9)
    assert spectra.optimum(c.clone(), RANK) == pytest.approx(wanted.optimum, rel=1e-9)
    assert found.gap == pytest.approx(wanted.gap, rel=1e-6)


def test_a_few_empty_directions_are_counted() -> None:
    c = moment(DIM - 3)
    wanted, found = full.null_space(c, RANK), spectra.null_space(c.clone(), RANK)
    assert len(found.eigenvalues) == RANK + 1
    assert found.numerical_rank == wanted.numerical_rank == DIM - 3
    assert principal_angles(found.basis.T, wanted.basis.T).max() < 1e-7


def test_more_empty_directions_than_wanted_are_chosen_from_all_of_them() -> None:
    c = moment(DIM - 2 * RANK)
    c = (c + c.T) / 2
    wanted, found = full.null_space(c, RANK), spectra.null_space(c.clone(), RANK)
    assert torch.equal(found.basis, wanted.basis)  # C was restored to the last bit
    assert found.numerical_rank == DIM - 2 * RANK


def test_a_narrow_one_is_not_touched() -> None:
    c = moment()[:-1, :-1].contiguous()
    before = c.clone()
    spectra.null_space(c, RANK)
    assert torch.equal(c, before)


def test_nothing_at_all_is_all_empty() -> None:
    found = spectra.null_space(torch.zeros(DIM, DIM, dtype=torch.float64), RANK)
    assert (found.optimum, found.numerical_rank, found.gap) == (0.0, 0, 1.0)
