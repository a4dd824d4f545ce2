"""Windows of text for a model, tokenised by its own tokenizer."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from subspacelab.data.windows import Windows, cut_windows, join
from subspacelab.models.causal_lm import load_tokenizer
from subspacelab.models.tokens import encode, prefix_of, read_model_config, require_readable

CHARACTERS_PER_TOKEN = 8
"""Characters of text read at first for each requested token: twice what English needs. If they are too few, four times
as many are read."""


def text_windows(model: Path, texts: Sequence[str], num_windows: int, seq_len: int, seed: int) -> Windows:
    """Windows of `texts` by the tokenizer in the folder `model`, drawn as `cut_windows` does.

    Each window begins with the tokens that the tokenizer puts before a text; an end token follows each document. If the
    text is much longer than needed, stretches are drawn by `seed` first, and only these are tokenised. ValueError if a
    window is longer than the model's positions, or has a token without an embedding.
    """
    config, tokenizer = read_model_config(model), load_tokenizer(model)
    prefix = prefix_of(tokenizer, texts[0])
    total, length = sum(map(len, texts)), CHARACTERS_PER_TOKEN * seq_len
    while True:
        stretches = [_encode(tokenizer, documents) for documents in _draw(texts, num_windows, length, seed)]
        windows = cut_windows(stretches, num_windows=num_windows, seq_len=seq_len, seed=seed, prefix=prefix)
        if not windows.shortage or num_windows * length >= total:
            break
        length *= 4
    require_readable(config, tokenizer, windows.input_ids.tolist(), remedy="shorten `seq_len`")
    return replace(windows, prefix=tuple(tokenizer.convert_ids_to_tokens(prefix)))


def _encode(tokenizer: Any, documents: Sequence[str]) -> list[int]:
    return join(encode(tokenizer, documents), tokenizer.eos_token_id)


def _draw(texts: Sequence[str], num_windows: int, length: int, seed: int) -> Iterator[Sequence[str]]:
    """Stretches of `texts` that do not overlap, in their order, with `num_windows` times `length` characters in all.

    Each stretch has twice `length` characters. A text that is not longer than the total is returned as one stretch.
    """
    ends = list(accumulate(map(len, texts)))
    if ends[-1] <= num_windows * length:
        yield texts
        return
    order = torch.randperm(-(-ends[-1] // (2 * length)), generator=torch.Generator().manual_seed(seed))
    for number in sorted(order[: -(-num_windows // 2)].tolist()):
        start, end = 2 * length * number, 2 * length * (number + 1)
        documents, i = [], bisect_right(ends, start)
        while i < len(ends) and (begin := ends[i] - len(texts[i])) < end:
            documents.append(texts[i][max(start - begin, 0) : end - begin])
            i += 1
        yield documents
