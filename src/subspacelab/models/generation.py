"""Generation by a causal language model: greedy answers to many questions at once."""

from collections.abc import Sequence
from typing import Any

import torch

from subspacelab.data.instructions import prompt_of
from subspacelab.models.tokens import encode_prompts, max_positions, padding_id, require_readable


@torch.no_grad()
def greedy_answers(
    model: Any, tokenizer: Any, queries: Sequence[str], *, max_new_tokens: int, batch_size: int
) -> list[str]:
    """The model's greedy answer to each query, without the prompt, up to its end token.

    Prompts (`prompt_of`) are padded on the left, so that all answers start at the same position; answers stop at the
    model's last position. The model is put in evaluation mode and restored afterwards. ValueError for a prompt that is
    too long or has a token without an embedding.
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


def _batch_answers(model: Any, tokenizer: Any, queries: Sequence[str], max_new_tokens: int) -> list[str]:
    prompts = encode_prompts(tokenizer, [prompt_of(query) for query in queries])
    require_readable(model.config, tokenizer, prompts, remedy="shorten the query")
    pad = padding_id(model.config, tokenizer)
    length = max(map(len, prompts))
    limit = max_positions(model.config)
    room = limit - length + 1 if limit else max_new_tokens  # the last token is never read
    input_ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        temperature=None,  # a stored generation config may set these; a greedy answer has no use for them
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )
    return [text.strip() for text in tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)]
