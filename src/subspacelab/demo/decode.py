"""Boxes out of the model: one pass over picture and question, then four location tokens from the cache."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subspacelab.demo.prompts import NUM_COORDINATES, bins_box
from subspacelab.demo.tokenizer import NUM_BINS, DemoTokenizer
from subspacelab.models.qwen_vl import prompt_embeddings, vision_tokens


@dataclass(frozen=True)
class Boxes:
    """Decoded boxes; rows are samples of one picture together: row b * samples + s."""

    bins: Int[Tensor, "rows 4"]
    """x1, y1, x2, y2 in 0...15."""
    boxes: Float[Tensor, "rows 4"]
    """x, y, w, h in pixels."""
    log_probs: Float[Tensor, "rows 4"]
    """Log-probability of each chosen bin among the 16 (temperature 1)."""


@dataclass(frozen=True)
class Prefix:
    """A prompt that the language model has read."""

    logits: Float[Tensor, "rows 16"]
    """Of the first coordinate, over the location tokens."""
    cache: Any
    """transformers' key-value cache."""
    position: int
    """Rotary position of the next token."""

    def repeat(self, samples: int) -> "Prefix":
        """Each row `samples` times, next to each other; the cache is changed in place."""
        if samples > 1:
            self.cache.batch_repeat_interleave(samples)
        return Prefix(self.logits.repeat_interleave(samples, 0), self.cache, self.position)


def read_prefix(model: Any, tokenizer: DemoTokenizer, batch: dict[str, Tensor]) -> Prefix:
    """Encodes each picture once and fills the cache."""
    embeddings = prompt_embeddings(model, batch["input_ids"], vision_tokens(model, batch))
    positions = batch["position_ids"]
    out = model.model.language_model(inputs_embeds=embeddings, position_ids=positions, use_cache=True)
    logits = location_logits(model, tokenizer, out.last_hidden_state[:, -1])
    return Prefix(logits, out.past_key_values, int(positions[0, 0, -1]) + 1)


def read_bins(
    model: Any, tokenizer: DemoTokenizer, prefix: Prefix, bins: Int[Tensor, "rows n"]
) -> Float[Tensor, "rows n 16"]:
    """Logits over the location tokens after each of `bins`; the cache grows by n."""
    embeddings = model.get_input_embeddings()(bins + tokenizer.first_location)
    positions = (torch.arange(bins.shape[1]) + prefix.position).expand(3, len(bins), -1)
    out = model.model.language_model(
        inputs_embeds=embeddings, position_ids=positions, past_key_values=prefix.cache, use_cache=True
    )
    return location_logits(model, tokenizer, out.last_hidden_state)


def location_logits(
    model: Any, tokenizer: DemoTokenizer, hidden: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch 16"]:
    """Logits of the location tokens only."""
    first = tokenizer.first_location
    logits: Tensor = hidden @ model.lm_head.weight[first : first + NUM_BINS].T
    return logits


@torch.no_grad()
def decode_boxes(
    model: Any,
    tokenizer: DemoTokenizer,
    batch: dict[str, Tensor],
    *,
    size: int,
    samples: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Boxes:
    """Four location tokens per row, the likeliest at temperature 0, else sampled with `generator`."""
    prefix = read_prefix(model, tokenizer, batch).repeat(samples)
    logits, chosen, log_probs = prefix.logits, [], []
    for i in range(NUM_COORDINATES):
        bins = choose(logits, temperature, generator)
        chosen.append(bins)
        log_probs.append(logits.log_softmax(-1).gather(-1, bins[:, None])[:, 0])
        if i + 1 < NUM_COORDINATES:
            logits = read_bins(model, tokenizer, prefix, bins[:, None])[:, 0]
            prefix = Prefix(logits, prefix.cache, prefix.position + 1)
    bins = torch.stack(chosen, dim=1)
    return Boxes(bins, bins_box(bins, size), torch.stack(log_probs, dim=1))


def choose(
    logits: Float[Tensor, "rows 16"], temperature: float, generator: torch.Generator | None
) -> Int[Tensor, " rows"]:
    """The likeliest bin at temperature 0, else one drawn from softmax(logits / temperature)."""
    if temperature == 0.0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
