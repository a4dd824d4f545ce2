"""Gram matrices: float64, symmetric, the same whatever the chunking."""

import pytest
import torch
from tests.unit.linalg.matrices import gaussian

from subspacelab.linalg import moments as module
from subspacelab.linalg.moments import gram


@pytest.mark.parametrize("shape", [(700, 40), (40, 700), (1100, 1030)])
def test_against_the_plain_product(shape):
    w = gaussian(*shape).bfloat16()
    d = w.double()
    # bf16 products are exact in float64: only the order of the sums differs.
    torch.testing.assert_close(gram(w), d.T @ d, rtol=0, atol=1e-10)
    torch.testing.assert_close(gram(w, "left"), d @ d.T, rtol=0, atol=1e-10)


def test_chunks_leave_nothing_out(monkeypatch):
    w = gaussian(203, 17)
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 17 * 10)
    monkeypatch.setattr(module, "BLOCK", 5)
    g = gram(w)
    torch.testing.assert_close(g, w.T @ w, rtol=0, atol=1e-11)
    torch.testing.assert_close(g, g.T, rtol=0, atol=1e-11)
