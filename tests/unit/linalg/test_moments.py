import pytest
import torch
from tests.unit.linalg.matrices import gaussian

from subspacelab.linalg import moments
from subspacelab.linalg import moments as second_moment
from subspacelab.linalg.moments import SecondMoment, gram


def test_sum_over_tokens_whatever_the_blocks(monkeypatch) -> None:
    monkeypatch.setattr(second_moment, "BLOCK", 7)
    monkeypatch.setattr(second_moment, "CHUNK", 5)
    x = gaussian(33, 20)
    moment = SecondMoment(20)
    for part in x.split(13):
        moment.add(part)
    # The same products added in another order: 33 terms of size 1 lose 3e-14.
    torch.testing.assert_close(moment.matrix(), x.T @ x, rtol=0, atol=1e-12)
    torch.testing.assert_close(moment.matrix(), moment.matrix().T, rtol=0, atol=1e-12)
    assert moment.num_tokens == 33
    moment.add(x)
    torch.testing.assert_close(moment.matrix(), 2 * x.T @ x, rtol=0, atol=1e-12)


def test_narrow_tokens_are_summed_in_float64() -> None:
    x = gaussian(4000, 3).bfloat16()
    moment = SecondMoment(3)
    moment.add(x)
    wide = x.double()
    # Another order of 4,000 float64 sums loses 1e-11, summing in float32 1e-4.
    torch.testing.assert_close(moment.matrix(), wide.T @ wide, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(700, 40), (40, 700), (1100, 1030)])
def test_against_the_plain_product(shape):
    w = gaussian(*shape).bfloat16()
    d = w.double()
    # bf16 products are exact in float64: only the order of the sums differs.
    torch.testing.assert_close(gram(w), d.T @ d, rtol=0, atol=1e-10)
    torch.testing.assert_close(gram(w, "left"), d @ d.T, rtol=0, atol=1e-10)


def test_chunks_leave_nothing_out(monkeypatch):
    w = gaussian(203, 17)
    monkeypatch.setattr(moments, "CHUNK_ENTRIES", 17 * 10)
    monkeypatch.setattr(moments, "BLOCK", 5)
    g = gram(w)
    torch.testing.assert_close(g, w.T @ w, rtol=0, atol=1e-11)
    torch.testing.assert_close(g, g.T, rtol=0, atol=1e-11)


def test_a_sum_is_made_of_its_matrix_and_goes_on(monkeypatch) -> None:
    monkeypatch.setattr(second_moment, "TOKENS_AT_ONCE", 7)
    x = gaussian(33, 20)
    moment = SecondMoment(20)
    moment.add(x)
    again = SecondMoment.of(moment.matrix(), moment.num_tokens).to(torch.device("cpu"))
    assert torch.equal(again.matrix(), moment.matrix())
    assert torch.equal(moment.diagonal(), moment.matrix().diagonal())
    assert torch.equal(moment.matrix(again), 2 * moment.matrix())
    again.add(x)
    assert again.num_tokens == 66
    torch.testing.assert_close(again.matrix(), 2 * x.T @ x, rtol=0, atol=1e-12)
