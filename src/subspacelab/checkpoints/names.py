"""One name per weight, whichever of the layouts its checkpoint was saved in."""

import re
from collections.abc import Iterable

from subspacelab.core.errors import CheckpointError

WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"),
    *("base_layer", "original_module", r"base_model\.model"),
)
"""Parts that data-parallel training, torch.compile, FSDP, activation checkpointing, Lightning and PEFT put in names."""

LLM_BLOCK = (
    "self_attn|linear_attn|block_sparse_moe|mlp(?!\\.fc)|(?:input|(?:pre|post)_(?:attention|feedforward))_layernorm"
)
RULES = (
    (re.compile(rf"(?<![^.])(?:{'|'.join(WRAPPERS)})\."), ""),
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.(?:language_model\.)+"), "model."),
    (re.compile(r"^language_model\.(?!model\.|lm_head)"), "model."),
    (re.compile(rf"^(?=embed_tokens\.|norm\.|layers\.\d+\.(?:{LLM_BLOCK})\.)"), "model."),
)
"""Wrappers, wherever they stand; the three layouts that differ from the hub's; a language model saved without head."""

ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save|original_module)(?:\.|$)")


def canonical_name(raw: str) -> str:
    """The hub's name of a weight: `model.visual.x` -> `visual.x`, `model.language_model.x` -> `model.x`.

    The layouts of one model agree, and wrappers fall away; applying it twice changes nothing. Files are read by
    their raw names: this one is for comparing checkpoints and matching patterns.
    """
    before, name = "", raw
    while name != before:
        before = name
        for pattern, replacement in RULES:
            name = pattern.sub(replacement, name)
    return name


def canonical_keys(raw: Iterable[str]) -> dict[str, str]:
    """Canonical name -> name in the file; ValueError, naming both, for two of one canonical name."""
    keys: dict[str, str] = {}
    for key in raw:
        name = canonical_name(key)
        if name in keys:
            raise CheckpointError(
                f"{keys[name]} and {key}: two tensors for one weight, {name}; keep the one that counts"
            )
        keys[name] = key
    return keys


def unmerged_adapter(names: Iterable[str]) -> str | None:
    """The first name that PEFT gives to a part of a model that an adapter is not merged into; None without any."""
    return next((name for name in names if ADAPTER.search(name)), None)
