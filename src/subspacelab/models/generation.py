"""Asking a causal language model: greedy answers to many questions at once."""

from collections.abc import Sequence
from typing import Any

import torch

from subspacelab.data.instructions import prompt_of


@torch.no_grad()
def greedy_answers(
    model: Any, tokenizer: Any, queries: Sequence[str], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """The model's most likely answer to each query, without the prompt, up to its end token.

    Prompts (`prompt_of`) are padded on the left, so that every row's answer starts at the same position. A model in
    training mode is asked in evaluation mode and put back.
    """
    training = model.training
    model.eval()
    try:
        answers = []
        for i in range(0, len(queries), batch_size):
            answers += _batch_answers(model, tokenizer, queries[i : i + batch_size], max_new_tokens)
    finally:
        model.train(training)
    return answers


def padding_id(tokenizer: Any) -> int:
    """What fills up a batch, hidden by its mask: the tokenizer's padding, or else its end token, or else token 0."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad or 0


def _batch_answers(model: Any, tokenizer: Any, queries: Sequence[str], max_new_tokens: int) -> list[str]:
    prompts = [tokenizer(prompt_of(query))["input_ids"] for query in queries]
    pad = padding_id(tokenizer)
    length = max(map(len, prompts))
    input_ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,  # a stored generation config may set these; a greedy answer has no use for them
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    return [text.strip() for text in tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)]
