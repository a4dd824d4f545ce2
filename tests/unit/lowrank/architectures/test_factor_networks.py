"""ReLU and dropout in one: the same distribution and the same gradient as torch's two modules."""

import pytest
import torch
from torch.nn import functional as F

from subspacelab.lowrank.architectures.factor_networks import ReluDropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_evaluation_is_plain_relu(p):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ReluDropout(p).eval()(x), F.relu(x))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_is_kept_is_scaled_and_as_much_is_kept_as_asked(p):
    torch.manual_seed(1)
    x = torch.randn(1001, 999)  # not a multiple of the four entries that a draw decides
    y = ReluDropout(p)(x)
    kept = y > 0
    assert torch.equal(kept, kept & (x > 0))
    torch.testing.assert_close(y[kept], x[kept] / (1 - p))
    share = kept.sum() / (x > 0).sum()
    deviation = (p * (1 - p) / (x > 0).sum()).sqrt()
    assert abs(share - (1 - p)) < 5 * deviation  # five standard deviations of a binomial share


def test_the_four_entries_of_a_draw_are_independent():
    torch.manual_seed(2)
    kept = (ReluDropout(0.5)(torch.ones(400_000)) > 0).float().view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 100_000**0.5  # five standard errors of a correlation of 100,000 pairs


def test_the_gradient_passes_where_the_entry_was_kept():
    torch.manual_seed(3)
    x = torch.randn(40, 30, requires_grad=True)
    y = ReluDropout(0.3)(x)
    gradient = torch.randn(40, 30)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, torch.where(y > 0, gradient / 0.7, 0.0))


def test_the_same_seed_drops_the_same_entries():
    x = torch.randn(64, 64)
    torch.manual_seed(4)
    first = ReluDropout(0.5)(x)
    assert not torch.equal(ReluDropout(0.5)(x), first)
    torch.manual_seed(4)
    assert torch.equal(ReluDropout(0.5)(x), first)
