"""Parts of an update: planted turns and changes of singular values come back, random frames bind the rest."""

import pytest
import torch
from torch import Tensor

from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.linalg.svd import SVD, svd
from subspacelab.linalg.update_parts import UpdateParts, add_scaled, match_pairs

SHAPES = [(12, 12), (20, 12), (12, 20)]
PARTS = ("leading", "trailing", "rotation", "spectrum")


def weight(m: int, n: int, s: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of a weight with gaps of 1.3."""
    g = torch.Generator().manual_seed(seed)
    r = min(m, n)
    s = 1.3 ** -torch.arange(r, dtype=torch.float64) if s is None else s
    return random_orthonormal(m, r, g), s, random_orthonormal(n, r, g)


def turned(u: Tensor, angle: float, seed: int) -> Tensor:
    """exp(angle * a skew matrix of norm 1) U."""
    skew = torch.randn(len(u), len(u), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    skew = skew - skew.T
    return torch.linalg.matrix_exp(angle * skew / torch.linalg.matrix_norm(skew, 2)) @ u


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_leading_is_the_best_approximation_and_trailing_the_rest(m: int, n: int) -> None:
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(m, n, generator=g) for _ in range(2))
    update = UpdateParts(a, b)
    u, s, vh = torch.linalg.svd((b - a).double(), full_matrices=False)
    for k in (0, 1, 5, 11):
        wanted = (u[:, :k] * s[:k]) @ vh[:k]
        torch.testing.assert_close(update.part("leading", k).double(), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(update.part("leading", k) + update.part("trailing", k), b - a)
    assert torch.equal(update.part("leading"), b - a)
    assert not update.part("trailing", 12).any()


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("same", [False, True], ids=["two turns", "one turn of both"])
def test_a_planted_turn_is_all_rotation(m: int, n: int, same: bool) -> None:
    if same and m != n:
        pytest.skip("one turn of both sides is of a square weight")
    u, s, v = weight(m, n)
    after = (turned(u, 0.05, 2) * s) @ turned(v, 0.05, 2 if same else 3).T
    update = UpdateParts((u * s) @ v.T, after)
    size = update.whole.norm()
    # To third order in the angle; a matching by index alone would be exact here, but not below.
    assert (update.part("rotation") - update.whole).norm() < 0.02 * size
    assert update.part("spectrum").norm() < 0.02 * size


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_a_planted_change_of_values_is_all_spectrum_where_they_change_places(m: int, n: int) -> None:
    u, s, v = weight(m, n)
    moved = s.clone()
    moved[[2, 3, 7]] = s[[2, 3, 7]] * torch.tensor([0.7, 1.4, 1.5])  # 3 passes 2, and 7 passes 6
    assert moved[3] > moved[2]
    update = UpdateParts((u * s) @ v.T, (u * moved) @ v.T)
    size = update.whole.norm()
    assert (update.part("spectrum") - update.whole).norm() < 1e-5 * size
    assert update.part("rotation").norm() < 1e-5 * size


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_each_keeps_the_singular_values_that_it_says(m: int, n: int) -> None:
    g = torch.Generator().manual_seed(4)
    a = torch.randn(m, n, generator=g)
    b = a + 0.3 * torch.randn(m, n, generator=g)
    update = UpdateParts(a, b)
    for part, ours in (("rotation", a), ("spectrum", b)):
        found = torch.linalg.svdvals(a.double() + update.part(part))
        torch.testing.assert_close(found, torch.linalg.svdvals(ours.double()), rtol=1e-5, atol=1e-6)


def test_pairs_are_matched_whatever_their_order_and_signs() -> None:
    u, s, v = weight(9, 7)
    order = torch.tensor([1, 0, 2, 4, 3, 6, 5])
    signs = torch.tensor([1, -1, 1, 1, -1, 1, -1.0], dtype=torch.float64)
    a = SVD(u, s, v.T, "lapack")
    b = SVD(u[:, order] * signs, s[order], (v[:, order] * signs).T, "lapack")
    wanted = torch.eye(7, dtype=torch.float64)[:, order]
    torch.testing.assert_close(match_pairs(a, b), wanted)
    q = match_pairs(svd(torch.randn(30, 8)), svd(torch.randn(30, 8)))
    torch.testing.assert_close(q @ q.T, torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("part", PARTS)
def test_no_update_has_no_parts(part: str) -> None:
    w = torch.randn(5, 4)
    assert not UpdateParts(w, w.clone()).part(part, 1 if part in PARTS[:2] else None).any()  # type: ignore[arg-type]


def test_sums_are_rounded_once() -> None:
    w, d = torch.randn(300, 40).bfloat16(), 1e-3 * torch.randn(300, 40)
    assert torch.equal(add_scaled(w, d, 0.5, torch.bfloat16), (w.double() + 0.5 * d.double()).bfloat16())
    assert add_scaled(torch.tensor(1.0), torch.tensor(2.0), 3.0, torch.float32) == 7
    assert torch.equal(add_scaled(torch.ones(3), torch.ones(3), -1.0, torch.float32), torch.zeros(3))
