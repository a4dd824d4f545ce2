"""Llama: building a small one, and reading and writing its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from subspacelab.core.settings import Count, settings
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer, quiet


@settings
class LlamaSizes:
    """Sizes of a small Llama."""

    hidden: Count = 256
    """Width of the residual stream."""
    depth: Count = 4
    """Blocks."""
    heads: Count = 8
    """Attention heads, as many for keys and values; hidden / heads must be even."""
    intermediate: Count = 688
    """Width of the MLP."""


@dataclass(frozen=True)
class TextTokens:
    """Facts about the tokenizer that the model needs."""

    vocab_size: int
    """Rows of the embedding."""
    bos: int
    """Begins every text."""
    eos: int
    """Ends every text."""
    pad: int
    """Fills a batch."""


def build_llama(sizes: LlamaSizes, tokens: TextTokens, *, seed: int) -> LlamaForCausalLM:
    """A model with weights drawn from `seed`, embedding and head separate; torch's global generator is not changed."""
    config = LlamaConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos,
        eos_token_id=tokens.eos,
        pad_token_id=tokens.pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_llama(model: LlamaForCausalLM, folder: Path, *, max_shard_size: str = "6MB") -> None:
    """Writes configs and sharded safetensors with hub key names."""
    with quiet():
        model.save_pretrained(folder, max_shard_size=max_shard_size)


def load_llama(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """Loads a folder's model in float32, in evaluation mode, and its tokenizer."""
    return load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(folder)
