"""How a question is put to the model: one form for training, scoring and calibration alike."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from subspacelab.data.instructions import Instruction, prompt_of
from subspacelab.models import fine_tuning
from subspacelab.models.fine_tuning import Example
from subspacelab.models.tokens import encode, encode_responses, prefix_of


def prompt_text(tokenizer: Any, query: str) -> str:
    """The text that a response follows directly: by the tokenizer's chat template, or `prompt_of` where it has none."""
    return _chat(tokenizer, {"user": query}, asks=True) if tokenizer.chat_template else prompt_of(query)


def _chat(tokenizer: Any, turns: Mapping[str, str], *, asks: bool) -> str:
    """The turns, by role, in the chat template, with the beginning of an answer if it `asks` for one."""
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
    except Exception as e:  # whatever a template raises that comes with a model
        reason = " ".join(str(e).split())[:120]
        raise ValueError(f"{tokenizer.name_or_path}: its chat template takes no plain question ({reason})") from e


def prompt_ids(tokenizer: Any, query: str, lead: str = "") -> list[int]:
    """The prompt's tokens, with those of `lead`, the words that a response is given to begin with.

    A chat template writes its begin token itself; before a plain prompt stands what the tokenizer puts there.
    """
    text = prompt_text(tokenizer, query) + lead
    prefix = [] if tokenizer.chat_template else prefix_of(tokenizer, text)
    return prefix + encode(tokenizer, [text])[0]


def response_ids(tokenizer: Any, query: str, response: str, lead: str = "") -> list[int]:
    """The tokens of a response where it follows the prompt and its lead, without an end."""
    prompt = prompt_text(tokenizer, query) + lead
    enough = len(prompt) + len(response)  # no token is shorter than a character
    return encode_responses(tokenizer, [prompt], [response], enough)[0]


def end_token(tokenizer: Any) -> int | None:
    """What ends a response: the first special token that the chat template puts behind one, else the tokenizer's end.

    None where there is neither.
    """
    if tokenizer.chat_template:
        said = "yes"
        behind = _chat(tokenizer, {"user": "?", "assistant": said}, asks=False).rpartition(said)[2]
        special = tokenizer.added_tokens_decoder
        for token in encode(tokenizer, [behind])[0]:
            if token in special:
                return int(token)
    end: int | None = tokenizer.eos_token_id
    return end


def continues_word(tokenizer: Any, vocab_size: int) -> Bool[Tensor, " vocab_size"]:
    """Whether a token goes on with the word before it: it begins with a letter, a digit or a hyphen, not with a space.

    Seen behind a point, since some tokenizers show no space where a text begins with one.
    """
    point = encode(tokenizer, ["."])[0]
    before = len(tokenizer.decode(point))
    ids = [[*point, i] for i in range(min(len(tokenizer), vocab_size))]
    behind = [text[before : before + 1] for text in tokenizer.batch_decode(ids)]
    found = torch.zeros(vocab_size, dtype=torch.bool)
    found[: len(behind)] = torch.tensor([c.isalnum() or c == "-" for c in behind])
    return found


def encode_example(tokenizer: Any, row: Instruction, max_length: int) -> Example | None:
    """Prompt, response and end token, cut at `max_length`; None when no token of the response is left.

    The loss is on response and end token only.
    """
    prompt, response = prompt_ids(tokenizer, row.query), response_ids(tokenizer, row.query, row.response)
    return fine_tuning.encode_example(prompt, response, end_token(tokenizer), max_length)
