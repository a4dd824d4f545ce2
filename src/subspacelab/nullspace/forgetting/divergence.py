"""KL divergence of a model from its base, at the base's likeliest tokens of each position and the rest as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

KEPT = 128
"""Tokens kept at a position; all the others count as one outcome."""


@dataclass(frozen=True)
class Predictions:
    """A model's at many positions."""

    tokens: Int[Tensor, "positions kept"]
    """The base's likeliest, at most `KEPT`."""
    log_probs: Float[Tensor, "positions kept"]
    """What the model gives them, in nats."""


def likeliest(log_probs: Float[Tensor, "positions vocab"]) -> Predictions:
    """What is kept of a base."""
    found = log_probs.topk(min(KEPT, log_probs.shape[-1]))
    return Predictions(found.indices, found.values)


def at_tokens(log_probs: Float[Tensor, "positions vocab"], tokens: Int[Tensor, "positions kept"]) -> Predictions:
    """What is kept of a model: its log-probabilities of the base's tokens."""
    return Predictions(tokens, log_probs.gather(-1, tokens))


def joined(rows: Sequence[Predictions]) -> Predictions:
    """The positions of all rows, one after another."""
    return Predictions(torch.cat([r.tokens for r in rows]), torch.cat([r.log_probs for r in rows]))


def divergence(base: Predictions, model: Predictions) -> float:
    """Mean of KL(base || model) over the positions, in nats a token; exactly 0 where they predict the same.

    sum_i p_i (log p_i - log q_i) over the kept tokens and the rest as one outcome: a lower bound on the KL over all
    tokens (data processing), and equal to it where the vocabulary has no more than `KEPT`.
    """
    log_p, log_q = base.log_probs.double(), model.log_probs.double()
    p, q = _rest(log_p), _rest(log_q)
    kept = (log_p.exp() * (log_p - log_q)).sum(-1)
    return float((kept + p * (p.log() - q.log())).mean())


def _rest(log_probs: Float[Tensor, "positions kept"]) -> Float[Tensor, " positions"]:
    """Probability of all tokens that are not kept, at least what float32 resolves, so that its logarithm is finite."""
    return (1 - log_probs.exp().sum(-1)).clamp(min=1e-7)
