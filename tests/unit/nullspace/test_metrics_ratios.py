"""Norms and ratios of one layer: built truths, numpy beside them, and what must never be exceeded."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from subspacelab.linalg.null_space import null_ratio
from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.nullspace.metrics import is_orthonormal, null_ratios, token_norms, update_bound

TOKENS, DIM, OUT, RANK = 50, 12, 9, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(seed: int = 1) -> Tensor:
    return random_orthonormal(DIM, RANK, torch.Generator().manual_seed(seed)).T


def test_norms_are_those_of_numpy_token_by_token() -> None:
    x, a, b, w = random(TOKENS, DIM), random(OUT, RANK, seed=2), random(RANK, DIM, seed=3), random(OUT, DIM, seed=4)
    found = token_norms(x.float(), a.float(), b.float(), w.float())
    xn, an, bn, wn = (t.float().numpy().astype(np.float64) for t in (x, a, b, w))
    wanted = {
        "X_norm": [np.linalg.norm(v) for v in xn],
        "BX_norm": [np.linalg.norm(bn @ v) for v in xn],
        "ABX_norm": [np.linalg.norm(an @ (bn @ v)) for v in xn],
        "ResidualX_norm": [np.linalg.norm(wn @ v) for v in xn],
        "FullOutput_norm": [np.linalg.norm(wn @ v + an @ (bn @ v)) for v in xn],
    }
    for name, values in wanted.items():
        assert getattr(found, name) == pytest.approx(np.mean(values), rel=1e-12)


def test_ratios_are_one_inside_the_span_and_zero_across_it() -> None:
    q = rows()
    inside = null_ratios(random(TOKENS, RANK, seed=5) @ q, q)
    assert vars(inside) == pytest.approx({"mean": 1, "median": 1})
    x = random(TOKENS, DIM)
    across = null_ratios(x - x @ q.T @ q, q)
    assert max(vars(across).values()) < 1e-14


def test_random_rows_hold_a_share_of_r_over_d() -> None:
    x = random(TOKENS, DIM)
    squares = [null_ratio(x.T @ x, rows(seed)) ** 2 for seed in range(400)]
    # The mean of 400 squares of spread about 0.08: 4e-3, so 3 of these.
    assert np.mean(squares) == pytest.approx(RANK / DIM, abs=0.012)


def test_one_sink_token_moves_the_mean_and_leaves_the_median() -> None:
    q, x = rows(), random(TOKENS, DIM)
    sink = random(1, DIM, seed=9)
    sink = 1e4 * (sink - sink @ q.T @ q)
    before, after = null_ratios(x, q), null_ratios(torch.cat([sink, x]), q)
    assert after.mean < before.mean / 20
    assert after.median == pytest.approx(before.median, rel=0.05)


def test_inputs_of_zeros_have_no_ratio_and_a_zero_token_has_no_part_in_the_median() -> None:
    with pytest.raises(ValueError, match="all 3 inputs are zero"):
        null_ratios(torch.zeros(3, DIM), rows())
    x = random(TOKENS, DIM)
    padded = torch.cat([x, torch.zeros(TOKENS + 5, DIM, dtype=x.dtype)])
    assert null_ratios(padded, rows()).median == null_ratios(x, rows()).median


def test_what_float32_stores_is_orthonormal_and_bfloat16_or_another_scale_is_not() -> None:
    q = rows()
    assert is_orthonormal(q.float())
    assert not is_orthonormal(q.bfloat16())
    assert not is_orthonormal(2 * q)
    assert not is_orthonormal(random(RANK, DIM))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("orthonormal", [True, False])
def test_no_update_along_b_exceeds_the_bound(seed: int, orthonormal: bool) -> None:
    b = rows(seed) if orthonormal else random(RANK, DIM, seed=seed)
    change, x = random(OUT, RANK, seed=seed + 50), random(TOKENS, DIM, seed=seed + 90)
    found = update_bound(x, change @ b, change, b)
    assert 0 < found.left <= found.right
    norm = np.linalg.svd(change.numpy(), compute_uv=False)[0]
    assert found.right == pytest.approx(norm * float((x @ b.T).norm() / x.norm()), rel=1e-12)


def test_the_bound_is_reached_by_an_isometry_and_broken_by_an_update_beside_b() -> None:
    b, x = rows(), random(TOKENS, DIM)
    isometry = random_orthonormal(OUT, RANK, torch.Generator().manual_seed(3))
    found = update_bound(x, isometry @ b, isometry, b)
    assert found.left == pytest.approx(found.right, rel=1e-12)
    moved = update_bound(x, isometry @ rows(seed=2), isometry, 1e-3 * b)
    assert moved.left > 100 * moved.right
    assert math.isfinite(moved.left)
