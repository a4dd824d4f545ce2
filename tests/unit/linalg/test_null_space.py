"""Null spaces: planted ones come back, none is better, and the ratio is the formula's."""

import math

import pytest
import scipy.linalg
import torch
from tests.unit.linalg.matrices import gaussian, planted, seeded

from subspacelab.linalg.null_space import (
    null_ratio,
    null_space,
    optimal_ratio,
    projected_factors,
    random_ratio,
    row_space,
)
from subspacelab.linalg.subspaces import principal_angles, random_orthonormal

SPECTRUM = 1 / torch.arange(1, 41, dtype=torch.float64)


def second_moment(tokens: int = 200, dim: int = 40, seed: int = 0) -> torch.Tensor:
    x = gaussian(tokens, dim, seed) * SPECTRUM[:dim]
    return x.T @ x


def test_planted_null_space_comes_back() -> None:
    x = planted(100, 40, SPECTRUM)
    bottom = torch.linalg.svd(x).Vh[-7:]
    space = null_space(x.T @ x, 7)
    # Davis-Kahan: eps * l_max over the gap l_8 - l_7 of 4e-5 is 5e-12.
    assert principal_angles(space.basis.T, bottom.T).max() < 1e-10
    torch.testing.assert_close(space.basis @ space.basis.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(space.eigenvalues.flip(0), SPECTRUM.square(), rtol=1e-10, atol=1e-15)
    assert space.gap == pytest.approx((34 / 33) ** 2, rel=1e-9)
    assert space.numerical_rank == 40


def test_ratio_is_that_of_the_tokens_and_of_the_formula() -> None:
    x = gaussian(300, 40) * SPECTRUM
    c = x.T @ x
    space = null_space(c, 6)
    measured = (x @ space.basis.T).norm() / x.norm()
    eigenvalues = torch.from_numpy(scipy.linalg.eigvalsh(c.numpy()))
    formula = math.sqrt(eigenvalues[:6].sum() / eigenvalues.sum())
    # Three float64 routes to one number.
    assert null_ratio(c, space.basis) == pytest.approx(measured.item(), rel=1e-10)
    assert null_ratio(c, space.basis) == pytest.approx(formula, rel=1e-10)
    assert space.optimum == pytest.approx(formula, rel=1e-10)


def test_ratio_keeps_its_digits_at_a_condition_of_1e7() -> None:
    s = torch.logspace(0, -7, 40, dtype=torch.float64)
    x = planted(400, 40, s)
    space = null_space(x.T @ x, 5)
    exact = (s[-5:].norm() / s.norm()).item()
    # C resolves singular values to 1e-8 of the largest; the least of these five is 1e-7.
    assert ((x @ space.basis.T).norm() / x.norm()).item() == pytest.approx(exact, rel=0.01)


def test_no_other_basis_does_better() -> None:
    c = second_moment()
    space = null_space(c, 6)
    best = null_ratio(c, space.basis)
    for seed in range(200):
        assert null_ratio(c, random_orthonormal(40, 6, seeded(seed)).T) > best
        turned = space.basis + 10.0 ** -(seed % 6) * gaussian(6, 40, seed)
        assert null_ratio(c, row_space(turned)) >= best * (1 - 1e-12)


def test_random_baseline_is_the_mean_of_the_squared_ratio() -> None:
    c = second_moment()
    squares = torch.tensor([null_ratio(c, random_orthonormal(40, 6, seeded(i)).T) ** 2 for i in range(2000)])
    error = squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - random_ratio(6, 40) ** 2) < 4 * error
    assert error < 0.03 * squares.mean()


def test_forgetting_is_bounded_by_what_is_left_of_the_inputs() -> None:
    x, b = gaussian(50, 20), null_space(second_moment(dim=20), 4).basis
    for seed in range(50):
        a, a0 = gaussian(12, 4, seed), gaussian(12, 4, 1000 + seed)
        forgotten = ((a - a0) @ b @ x.T).norm()
        assert forgotten <= torch.linalg.matrix_norm(a - a0, 2) * (b @ x.T).norm() * (1 + 1e-12)


def test_projected_factors_are_w_on_the_null_space() -> None:
    w, basis = gaussian(30, 40, 3), null_space(second_moment(), 6).basis
    a, b = projected_factors(w, basis)
    torch.testing.assert_close(a @ b, w @ basis.T @ basis, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.T @ a, b @ b.T, rtol=0, atol=1e-12)  # sqrt(S) on both sides


def test_both_v2_reach_the_same_updates() -> None:
    """{W + M N^T}: M (sqrt(S) V^T) over all M is the same set, for the row spaces agree."""
    w, basis = gaussian(30, 40, 3), null_space(second_moment(), 6).basis
    _, b = projected_factors(w, basis)
    assert principal_angles(row_space(b).T, basis.T).max() < 1e-10
    m = gaussian(30, 6, 4)
    update = m @ basis
    solved = torch.linalg.lstsq(b.T, update.T).solution.T
    torch.testing.assert_close(solved @ b, update, rtol=0, atol=1e-10)


def test_rounding_below_zero_is_clamped_and_counted() -> None:
    x = planted(60, 40, SPECTRUM[:30])
    c = x.T @ x - 1e-16 * torch.eye(40, dtype=torch.float64)
    assert torch.linalg.eigvalsh(c)[0] < 0
    space = null_space(c, 5)
    assert (space.num_clamped, space.numerical_rank) == (10, 30)
    assert space.eigenvalues.min() == 0
    assert (space.optimum, space.gap) == (0.0, 1.0)
    assert null_ratio(c, space.basis) < 1e-8


def test_choice_among_empty_directions_is_not_lapacks() -> None:
    """Three dead inputs and a mixed one: the axes come first, and a turned eigenbasis changes nothing."""
    alive = torch.tensor([0, 2, 3, 5, 6, 8])
    c = torch.zeros(9, 9, dtype=torch.float64)
    x = gaussian(50, 6)
    x[:, 5] = x[:, 4]
    c[alive[:, None], alive] = x.T @ x
    space = null_space(c, 3)
    torch.testing.assert_close(space.basis, torch.eye(9, dtype=torch.float64)[[1, 4, 7]], rtol=0, atol=1e-12)
    permuted = torch.tensor([0, 1, 2, 3, 4, 5, 8, 7, 6])
    again = null_space(c[permuted][:, permuted], 3).basis[:, permuted]
    assert principal_angles(space.basis.T, again.T).max() < 1e-7


def test_row_space_ignores_the_size_of_rows() -> None:
    b = torch.diag(torch.tensor([1.0, 1e-4, 1e3])).double() @ gaussian(3, 20)
    q = row_space(b)
    torch.testing.assert_close(q @ q.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert principal_angles(q.T, gaussian(3, 20).T).max() < 1e-9


def test_whole_space_and_no_inputs() -> None:
    space = null_space(second_moment(), 40)
    assert space.optimum == pytest.approx(1)
    assert space.gap == math.inf
    nothing = null_space(torch.zeros(4, 4, dtype=torch.float64), 2)
    assert (nothing.optimum, nothing.numerical_rank) == (0.0, 0)
    assert null_ratio(torch.zeros(4, 4), nothing.basis) == 0
    assert optimal_ratio(torch.tensor([-1e-20, 1.0, 3.0]), 2) == 0.5


@pytest.mark.parametrize("rank", [0, 41])
def test_impossible_ranks_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of a second moment of 40 dimensions"):
        null_space(second_moment(), rank)
    with pytest.raises(ValueError, match="rank 6 of a weight with 5 outputs"):
        projected_factors(gaussian(5, 40), null_space(second_moment(), 6).basis)
