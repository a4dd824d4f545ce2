"""Small models before and after a training, as folders: linear layers, GPT-2's transposed ones, a tied vision model."""

from pathlib import Path
from typing import Any

import torch
from tests.unit.synthetic.tiny import TINY
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from subspacelab.synthetic.grounding.model import GroundingModel, build_model
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer

LLAMA: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 50}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA, **HEADS))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=32))
    return build_model(build_tokenizer(), seed=0, sizes=TINY, initializer_range=0.2)


def save_pair(folder: Path, kind: str, *, noise: float = 0.01, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """`folder/base` and `folder/tuned`, every entry moved by noise."""
    model, generator = build(kind), torch.Generator().manual_seed(1)
    _save(model.to(dtype), folder / "base", kind)
    for parameter in model.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator).to(dtype)
    _save(model, folder / "tuned", kind)
    return folder / "base", folder / "tuned"


def _save(model: Any, folder: Path, kind: str) -> None:
    if kind == "qwen_vl":
        GroundingModel(model, build_tokenizer()).save(folder)
    else:
        model.save_pretrained(folder)
