"""Text as token ids for a causal language model: with the tokenizer's prefix, within positions and vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PART, BATCH = 1 << 14, 64
"""Characters per part of a text, and parts per call of the tokenizer, which needs about 360 bytes per character."""
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""Names of the maximum length in different families; the second is MPT's, the third that of speech models."""
_COUNT_FROM_PADDING = ("roberta", "camembert", "data2vec-text", "xmod")
"""Model types whose first position is the padding's id + 1."""


def read_model_config(folder: Path) -> Any:
    """The configuration of a model's folder as transformers reads it; no code from the folder is run."""
    from transformers import AutoConfig

    from subspacelab.models.causal_lm import quiet

    with quiet():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def encode(tokenizer: Any, texts: Sequence[str], enough: int | None = None) -> list[list[int]]:
    """The tokens of each text, without special tokens around it; memory does not grow with the length of a text.

    The rest of a long text is not read once it has `enough` tokens.
    """
    found: list[list[int]] = [[] for _ in texts]
    parts = [(number, i) for number, text in enumerate(texts) for i in range(0, len(text), PART)]
    for first in range(0, len(parts), BATCH):
        batch = [part for part in parts[first : first + BATCH] if enough is None or len(found[part[0]]) < enough]
        if not batch:
            continue
        given = [texts[number][i : i + PART] for number, i in batch]
        tokens = tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
        for (number, _), ids in zip(batch, tokens, strict=True):
            found[number] += ids
    return found


def prefix_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens that the tokenizer puts before every text, such as a begin token; found from one example.

    If the text is empty or has only special tokens, the letter "a" is used, since the prefix could not be recognised.
    """
    text = text[:PART]
    whole, (plain,) = tokenizer(text)["input_ids"], encode(tokenizer, [text])
    if set(plain) <= set(tokenizer.all_special_ids) and text != "a":
        return prefix_of(tokenizer, "a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:start])


def encode_prompts(tokenizer: Any, prompts: Sequence[str], enough: int | None = None) -> list[list[int]]:
    """Each prompt with the tokenizer's prefix; tokens that it puts after a text are left out: a response follows."""
    prefix = prefix_of(tokenizer, prompts[0])
    return [prefix + ids for ids in encode(tokenizer, prompts, enough)]


def encode_responses(tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], enough: int) -> list[list[int]]:
    """The tokens of each response after its prompt, since a tokenizer may begin every text with a space.

    If the border between the two falls inside a token, the tokens of the response alone. The rest after the first
    `enough` tokens may be missing in both cases.
    """
    before = encode(tokenizer, prompts, enough)
    both = encode(tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)], 2 * enough)
    alone = encode(tokenizer, responses, enough)
    return [w[len(b) :] if w[: len(b)] == b else a for b, w, a in zip(before, both, alone, strict=True)]


def max_positions(config: Any) -> int | None:
    """The longest text that the model supports; None without a limit."""
    text = config.get_text_config()
    limit = next((found for key in _POSITIONS if (found := getattr(text, key, None))), None)
    if limit and any(kind in text.model_type for kind in _COUNT_FROM_PADDING):
        limit -= (text.pad_token_id or 0) + 1
    return limit


def require_readable(config: Any, tokenizer: Any, rows: Sequence[Sequence[int]], remedy: str) -> None:
    """ValueError if a row is longer than the model's positions, or has a token without an embedding."""
    limit, longest = max_positions(config), max(map(len, rows), default=0)
    if limit and longest > limit:
        raise ValueError(f"{longest} tokens are more than the model has positions, {limit}: {remedy}")
    size = config.get_text_config().vocab_size
    beyond = max((token for row in rows for token in row), default=0)
    if beyond >= size:
        raise ValueError(
            f"token {tokenizer.convert_ids_to_tokens(beyond)!r} ({beyond}) has no embedding, the model has {size}:"
            " take it out of the text, or give the model the tokenizer that it was trained with"
        )


def padding_id(config: Any, tokenizer: Any) -> int:
    """Id of the padding, which the mask hides: the first of padding and end token that has an embedding, else 0."""
    size = config.get_text_config().vocab_size
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in found if token is not None and token < size), 0)
