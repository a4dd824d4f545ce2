"""Texts as windows of a model's own tokens."""

from collections.abc import Sequence
from pathlib import Path

from subspacelab.data.windows import Windows, token_windows
from subspacelab.models.causal_lm import load_tokenizer


def text_windows(model: Path, texts: Sequence[str], num_windows: int, seq_len: int, seed: int) -> Windows:
    """Windows of `texts` by the tokenizer in the folder `model`, its end token after each text."""
    tokenizer = load_tokenizer(model)
    documents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    separator = tokenizer.eos_token_id
    return token_windows(documents, num_windows=num_windows, seq_len=seq_len, seed=seed, separator=separator)
