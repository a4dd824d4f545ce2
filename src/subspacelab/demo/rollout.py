"""Groups of sampled boxes that share one reading of their picture and question."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subspacelab.demo.decode import location_logits, read_prefix
from subspacelab.demo.prompts import NUM_COORDINATES
from subspacelab.demo.tokenizer import NUM_BINS, DemoTokenizer


@dataclass(frozen=True)
class Rollout:
    """A group of boxes for every picture, and what the model thought at each coordinate."""

    bins: Int[Tensor, "pictures group 4"]
    """x1, y1, x2, y2 in 0...15."""
    log_probs: Float[Tensor, "pictures group 4 16"]
    """Log-probabilities of all 16 bins where each coordinate was chosen; they carry the gradient if it is on."""


def sample_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    group: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Rollout:
    """Draws `group` boxes per picture from the policy softmax(logits / temperature)."""
    return _roll_out(model, tokenizer, batch, group, lambda t, log_probs: _draw(log_probs, generator), temperature)


def score_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    bins: Int[Tensor, "pictures group 4"],
    *,
    temperature: float = 1.0,
) -> Rollout:
    """Follows boxes that are given ("teacher forcing")."""
    return _roll_out(model, tokenizer, batch, bins.shape[1], lambda t, log_probs: bins[:, :, t], temperature)


def _roll_out(
    model: Any, tokenizer: DemoTokenizer, batch: dict[str, Tensor], group: int, choose: Any, temperature: float
) -> Rollout:
    """Reads each prompt once and lets its `group` answers hang from it in one sequence.

    Coordinate t of all answers is one forward of `group` positions. Each sees the prompt and its own answer's earlier
    coordinates, never a neighbour's, at the rotary position that it would have alone. So prompt and picture cost one
    forward and one backward whatever the group, and no cache is copied per answer.
    """
    prefix = read_prefix(model, tokenizer, batch)
    seen = batch["input_ids"].shape[1]
    log_probs = [(prefix.logits / temperature).log_softmax(-1)[:, None].expand(-1, group, -1)]
    bins = [choose(0, log_probs[0])]
    for t in range(1, NUM_COORDINATES):
        out = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(bins[-1] + tokenizer.first_location),
            position_ids=torch.full((3, len(bins[-1]), group), prefix.position + t - 1),
            attention_mask=_own_answer_mask(len(bins[-1]), group, seen, t),
            past_key_values=prefix.cache,
            use_cache=True,
        )
        logits = location_logits(model, tokenizer, out.last_hidden_state)
        log_probs.append((logits / temperature).log_softmax(-1))
        bins.append(choose(t, log_probs[t]))
    return Rollout(torch.stack(bins, dim=2), torch.stack(log_probs, dim=2))


def _own_answer_mask(pictures: int, group: int, seen: int, steps: int) -> Bool[Tensor, "pictures 1 group keys"]:
    """Answer i sees all `seen` tokens of the prompt and, of each coordinate after it, its own."""
    own = torch.eye(group, dtype=torch.bool).repeat(1, steps)
    row = torch.cat([torch.ones(group, seen, dtype=torch.bool), own], dim=1)
    return row.expand(pictures, 1, group, -1)


def _draw(log_probs: Float[Tensor, "pictures group 16"], generator: torch.Generator) -> Int[Tensor, "pictures group"]:
    rows = log_probs.detach().exp().reshape(-1, NUM_BINS)
    return torch.multinomial(rows, 1, generator=generator).view(log_probs.shape[:2])
