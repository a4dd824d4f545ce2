"""The two errors of a decomposition, against their definitions, on damaged factors."""

from dataclasses import replace

import pytest
import torch
from tests.unit.linalg.matrices import gaussian

from subspacelab.linalg.svd import orthogonality_error, reconstruction_error, svd


@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
def test_a_planted_error_is_measured(shape):
    w = gaussian(*shape)
    good = svd(w)
    damaged = replace(good, S=good.S * 1.25)
    # U diag(S) Vh grows by 1/4, so a quarter of W is wrong; factors are float32.
    assert reconstruction_error(w, damaged) == pytest.approx(0.25, rel=1e-6)
    tilted = replace(good, U=good.U * 1.5)
    assert orthogonality_error(tilted) == pytest.approx(1.25, rel=1e-6)
    assert orthogonality_error(replace(good, Vh=good.Vh * 1.5)) == pytest.approx(1.25, rel=1e-6)


def test_measuring_changes_nothing():
    w = gaussian(120, 80)
    before = w.clone()
    reconstruction_error(w, svd(w))
    assert torch.equal(w, before)


def test_zero_matrix_has_no_error():
    w = torch.zeros(30, 20)
    assert reconstruction_error(w, svd(w)) == 0
