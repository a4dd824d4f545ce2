"""Tiny language models of four families with a tokenizer and a text, built and never downloaded."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)

FAMILIES = ("llama", "qwen2", "gpt_neox", "opt")
CHARACTERS = string.ascii_letters + string.digits[:9]
VOCABULARY = 64
WIDTH, INNER = 24, 40
NUM_INPUTS = 8
"""Distinct inputs of the two blocks in each family: that of the queries, of the attention's output, two of the MLP."""


def tiny_config(family: str) -> Any:
    """A config of two blocks; qwen2 has biases at q, k, v, gpt_neox and opt everywhere, opt's embeddings are tied."""
    common = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    if family == "opt":
        sizes = {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 128, "dropout": 0.0}
        return OPTConfig(**common, **sizes, **ends, tie_word_embeddings=True)
    if family == "gpt_neox":
        return GPTNeoXConfig(**common, **ends, intermediate_size=INNER, max_position_embeddings=128)
    kind = LlamaConfig if family == "llama" else Qwen2Config
    return kind(**common, **ends, intermediate_size=INNER, num_key_value_heads=2, tie_word_embeddings=True)


def tiny_model(family: str = "llama", seed: int = 0) -> Any:
    """The model of `seed` in float32, with weights and biases large enough for the layers to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.3 if parameter.ndim > 1 else 0.1
                parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model.eval()


def write_tiny_lm(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Model and tokenizer as a folder; returns it."""
    tiny_model(family, seed).save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {c: 3 + i for i, c in enumerate(CHARACTERS)}
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if family == "qwen2":  # transformers takes no other class for it
        Qwen2Tokenizer(vocab=vocabulary, merges=[], **special).save_pretrained(folder)
        return folder
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def write_text(path: Path, num_tokens: int = 1200, seed: int = 0) -> Path:
    """Random characters, the first more often than the last, twenty to a document."""
    generator = torch.Generator().manual_seed(seed)
    ids = (len(CHARACTERS) * torch.rand(num_tokens, generator=generator) ** 2).long()
    text = "".join(CHARACTERS[i] for i in ids.tolist())
    path.write_text("\n\n".join(text[i : i + 20] for i in range(0, num_tokens, 20)) + "\n")
    return path
