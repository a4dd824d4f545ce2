"""KL against torch's own, and what keeping only the likeliest tokens does to it."""

import pytest
import torch
from torch import Tensor

from subspacelab.nullspace.forgetting.divergence import KEPT, at_tokens, divergence, joined, likeliest


def drawn(vocabulary: int, seed: int, positions: int = 7) -> Tensor:
    logits = 3 * torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


def whole_kl(p: Tensor, q: Tensor) -> float:
    return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean"))


def kept_kl(p: Tensor, q: Tensor) -> float:
    base = likeliest(p)
    return divergence(base, at_tokens(q, base.tokens))


def test_it_is_the_kl_where_every_token_is_kept() -> None:
    p, q = drawn(KEPT, 0), drawn(KEPT, 1)
    assert kept_kl(p, q) == pytest.approx(whole_kl(p, q), rel=1e-5)


def test_else_it_is_a_close_lower_bound() -> None:
    p, q = drawn(1000, 0), drawn(1000, 1)
    assert 0.9 * whole_kl(p, q) < kept_kl(p, q) < whole_kl(p, q)


@pytest.mark.parametrize("vocabulary", [50, 1000])
def test_a_model_is_at_no_distance_from_itself_and_at_a_known_one_from_another(vocabulary: int) -> None:
    p = drawn(vocabulary, 2)
    assert kept_kl(p, p) == 0
    # q gives a half of each position's mass to the likeliest token on top of half of p: KL by hand at that token.
    q = (0.5 * p.exp() + 0.5 * torch.nn.functional.one_hot(p.argmax(-1), vocabulary)).log()
    top = p.exp().max(-1).values.double()
    expected = float((top * (top / (0.5 + 0.5 * top)).log() + (1 - top) * torch.tensor(2.0).log()).mean())
    assert kept_kl(p, q) == pytest.approx(expected, rel=1e-4)


def test_rows_are_weighted_by_their_positions() -> None:
    p, q = drawn(40, 3, positions=6), drawn(40, 4, positions=6)
    parts = [likeliest(p[:1]), likeliest(p[1:])]
    models = [at_tokens(q[:1], parts[0].tokens), at_tokens(q[1:], parts[1].tokens)]
    assert divergence(joined(parts), joined(models)) == pytest.approx(kept_kl(p, q), rel=1e-12)


def test_what_has_no_probability_left_stays_finite() -> None:
    certain = torch.full((1, 300), -200.0)
    certain[0, 5] = 0.0
    assert 0 < kept_kl(drawn(300, 5, positions=1), certain) < 1000
