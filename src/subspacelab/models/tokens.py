"""Text as a causal language model reads it: token ids with what its tokenizer puts in front, within its tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PART, BATCH = 1 << 14, 64
"""Characters of a text, and such parts, that a tokenizer is given at once: it takes some 360 bytes for each."""
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""What families call the length of their tables; the second is MPT's, the third that of speech models."""
_COUNT_FROM_PADDING = ("roberta", "camembert", "data2vec-text", "xmod")
"""Kinds of models whose first position is the padding's id + 1."""


def read_model_config(folder: Path) -> Any:
    """The configuration of a model's folder as transformers reads it; no code of the folder runs."""
    from transformers import AutoConfig

    from subspacelab.models.causal_lm import quiet

    with quiet():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def encode(tokenizer: Any, texts: Sequence[str], enough: int | None = None) -> list[list[int]]:
    """The tokens of each text alone, without what the tokenizer puts around it; memory does not grow with a text.

    Of a long text that has `enough` tokens, the rest is not read.
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
    """What the tokenizer puts before every text, such as its begin token, seen on one.

    On a letter, where the text is empty or holds nothing but special tokens: these would be taken for one another.
    """
    text = text[:PART]
    whole, (plain,) = tokenizer(text)["input_ids"], encode(tokenizer, [text])
    if set(plain) <= set(tokenizer.all_special_ids) and text != "a":
        return prefix_of(tokenizer, "a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:start])


def encode_prompts(tokenizer: Any, prompts: Sequence[str], enough: int | None = None) -> list[list[int]]:
    """Each prompt with what the tokenizer puts before it; what it would put behind does not belong in the midst."""
    prefix = prefix_of(tokenizer, prompts[0])
    return [prefix + ids for ids in encode(tokenizer, prompts, enough)]


def encode_responses(tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], enough: int) -> list[list[int]]:
    """The tokens of each response where it follows its prompt, for a tokenizer may begin every text with a space.

    Where the border of the two lies within a token, those of the response alone. Both may lack what comes after
    their first `enough` tokens.
    """
    before = encode(tokenizer, prompts, enough)
    both = encode(tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)], 2 * enough)
    alone = encode(tokenizer, responses, enough)
    return [w[len(b) :] if w[: len(b)] == b else a for b, w, a in zip(before, both, alone, strict=True)]


def max_positions(config: Any) -> int | None:
    """The longest text that a model is made for; None without a limit."""
    text = config.get_text_config()
    limit = next((found for key in _POSITIONS if (found := getattr(text, key, None))), None)
    if limit and any(kind in text.model_type for kind in _COUNT_FROM_PADDING):
        limit -= (text.pad_token_id or 0) + 1
    return limit


def require_readable(config: Any, tokenizer: Any, rows: Sequence[Sequence[int]], remedy: str) -> None:
    """ValueError for a row that is longer than the model's positions, and for a token that has no embedding."""
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
    """What fills up a batch, hidden by its mask: the tokenizer's padding or else its end token, if the model has an
    embedding of it, or else token 0.
    """
    size = config.get_text_config().vocab_size
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in found if token is not None and token < size), 0)
