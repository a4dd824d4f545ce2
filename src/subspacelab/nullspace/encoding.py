"""Rows {query, response} as token ids; the loss is computed on the response only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from subspacelab.data.instructions import Instruction, prompt_of
from subspacelab.models.fine_tuning import Example, encode_example
from subspacelab.models.tokens import encode_prompts, encode_responses


@dataclass(frozen=True)
class Examples:
    """Encoded rows for a training."""

    examples: list[Example]
    """Rows that have tokens of a response."""
    num_skipped: int
    """Number of rows whose prompt alone fills max_length."""


def encode_rows(tokenizer: Any, rows: Sequence[Instruction], max_length: int) -> Examples:
    """Prompt, response and end token of each row, cut at `max_length`.

    ValueError if no row has a token of its response left.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    prompts = [prompt_of(row.query) for row in rows]
    responses = encode_responses(tokenizer, prompts, [row.response for row in rows], max_length)
    encoded = [
        encode_example(prompt, response, tokenizer.eos_token_id, max_length)
        for prompt, response in zip(encode_prompts(tokenizer, prompts, max_length), responses, strict=True)
    ]
    kept = with_response(encoded, max_length)
    return Examples(kept, len(encoded) - len(kept))


def with_response(encoded: Iterable[Example | None], max_length: int) -> list[Example]:
    """The rows that have a token of their response left (the others are None); ValueError if none has."""
    kept = [example for example in encoded if example is not None]
    if not kept:
        raise ValueError(f"max_length {max_length}: no row has a token of its response left; raise `max_length`")
    return kept
