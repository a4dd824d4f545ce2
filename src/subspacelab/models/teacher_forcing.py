"""What a causal language model predicts at every token of given responses, without generating anything."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from subspacelab.models.fine_tuning import IGNORED, Batch, Example, collate

KEYS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that can be repeated along the batch."""


def response_of(example: Example) -> list[int]:
    """The tokens that have a label."""
    return [label for label in example.labels if label != IGNORED]


def prompt_length(example: Example) -> int:
    """How many tokens stand before the response."""
    return len(example.labels) - len(response_of(example))


def is_greedy(log_probs: Float[Tensor, "response vocab"], response: Int[Tensor, " response"]) -> bool:
    """Whether greedy decoding would give this response: each of its tokens is the likeliest after those before it."""
    return bool((log_probs.argmax(-1) == response).all())


def log_prob_of(log_probs: Float[Tensor, "response vocab"], response: Int[Tensor, " response"]) -> float:
    """log p(response | prompt), the sum over its tokens, in nats."""
    return float(log_probs.gather(-1, response[:, None]).double().sum())


def num_shared(rows: Sequence[list[int]]) -> int:
    """How many ids all rows begin with: as many as the first and the last of them in order."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


@torch.inference_mode()
def read_responses(
    model: Any, examples: Sequence[Example], *, pad: int, batch_size: int
) -> Iterator[tuple[int, Float[Tensor, "response vocab"]]]:
    """(place in `examples`, log-probabilities of the next token at each token of its response), the short ones first.

    The response, prompt aside, is what has a label, and is not empty. What all prompts begin with, such as a system
    prompt, is read once. On the CPU in float32, one batch at a time. ValueError where the model predicts what is not
    finite. A model in training mode is read in evaluation mode and put back.
    """
    if not examples:
        return
    training = model.training
    model.eval()
    try:
        starts = [prompt_length(example) for example in examples]
        shared = min(num_shared([e.input_ids for e in examples]), min(starts) - 1)
        cache = prefix_cache(model, examples[0].input_ids[:shared]) if shared > 0 else None
        shared = shared if cache else 0
        order = sorted(range(len(examples)), key=lambda i: (len(examples[i].input_ids), starts[i]))
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            rest = [Example(examples[i].input_ids[shared:], examples[i].labels[shared:]) for i in places]
            yield from zip(places, _log_probs(model, rest, cache, shared, pad), strict=True)
    finally:
        model.train(training)


def prefix_cache(model: Any, prefix: Sequence[int]) -> Any:
    """Keys and values of a prefix, batch 1; None from a model that keeps another state, such as linear attention's."""
    ids = torch.tensor([prefix], device=model.device)
    cache = getattr(model(input_ids=ids, use_cache=True, logits_to_keep=1), "past_key_values", None)
    return cache if isinstance(cache, DynamicCache) and all(type(layer) in KEYS for layer in cache.layers) else None


def _log_probs(model: Any, rows: Sequence[Example], cache: Any, shared: int, pad: int) -> list[Tensor]:
    batch = collate(rows, pad)
    mask = torch.nn.functional.pad(batch.attention_mask.long(), (shared, 0), value=1)
    state: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        copied = deepcopy(cache)
        copied.batch_repeat_interleave(len(rows))
        state = {"use_cache": True, "past_key_values": copied}
    starts = [prompt_length(row) for row in rows]
    length = batch.input_ids.shape[1]
    kept = length - min(starts) + 1  # the token before a response predicts its first
    ids, mask = batch.input_ids.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept, **state).logits
    found = []
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        first = start - 1 - (length - logits.shape[1])
        scores = logits[i, first : first + len(row.labels) - start].float().cpu()
        if not scores.isfinite().all():
            raise ValueError("the model predicts what is not finite; it has diverged: lower the learning rate")
        found.append(scores.log_softmax(-1))
    return found


def response_logits(model: Any, batch: Batch) -> tuple[Float[Tensor, "tokens vocabulary"], Int[Tensor, " tokens"]]:
    """Logits before each token of the responses, in float32, and these tokens.

    With gradients. What all prompts begin with, such as a system prompt, is read once: causal attention makes it the
    same for all. The head runs only where some row has a token of its response next.
    """
    ids, mask, labels = (t.to(model.device) for t in (batch.input_ids, batch.attention_mask, batch.labels[:, 1:]))
    places = (labels != IGNORED).any(0).nonzero()[:, 0]
    shared = min(num_shared(batch.input_ids.tolist()), int(places[0]))
    cache = prefix_cache(model, ids[0, :shared].tolist()) if shared else None
    if cache is None:
        shared = 0
    else:
        cache.batch_repeat_interleave(len(ids))
    given = {"past_key_values": cache} if cache else {"use_cache": False}
    kept = places - shared
    logits = model(input_ids=ids[:, shared:], attention_mask=mask.long(), logits_to_keep=kept, **given).logits
    wanted = labels[:, places] != IGNORED
    return logits[wanted].float(), labels[:, places][wanted]
