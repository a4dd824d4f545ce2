"""A small model of every kind of module that LoRA adapts, its adapters by PEFT, and what PEFT merges."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

TARGETS = ["q_proj", "up_proj", "c_attn", "embed_tokens", "conv"]
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"layers.1.q_proj": 2, "up_proj": 3},
    "alpha_pattern": {"layers.0.q_proj": 5, "c_attn": 1.5},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(24, 24, bias=False)
        self.up_proj = nn.Linear(24, 40)
        self.c_attn = Conv1D(36, 24)
        self.c_proj = Conv1D(24, 24)


class Model(nn.Module):
    """Weights in float64, so that merging does not round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(50, 24)
        self.conv = nn.Conv2d(3, 24, 2, bias=False)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.double()


def save_adapter(folder: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Saves an adapter of random factors on `Model` to `folder`; its base's state dict and the merged one."""
    model = Model()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False} | settings
    peft_model: Any = get_peft_model(model, LoraConfig(**given))  # type: ignore[arg-type]
    if given.get("use_dora"):
        for name, parameter in peft_model.named_parameters():
            if "magnitude" in name:
                parameter.data *= torch.rand(parameter.shape, dtype=parameter.dtype) + 0.5
    peft_model.save_pretrained(folder)
    return base, peft_model.merge_and_unload().state_dict()
