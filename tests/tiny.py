"""Tiny real checkpoints for everyone's tests: the hub's names, shapes and config of a small Qwen2.5-VL."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from subspacelab.core.files import write_json

Layout = Literal["legacy", "new", "base_model", "raw"]
Format = Literal["safetensors", "bin", "legacy_bin"]
LAYOUTS: tuple[Layout, ...] = ("legacy", "new", "base_model", "raw")

VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "out_hidden_size": 48,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
}
PREFIXES = {
    "legacy": {"visual.": "visual.", "model.": "model."},
    "new": {"visual.": "model.visual.", "model.": "model.language_model."},
    "base_model": {"visual.": "visual.", "model.": "language_model."},
    "raw": {"visual.": "module._orig_mod.model.visual.", "model.": "module._orig_mod.model.language_model."},
}


def write_tiny_qwen_vl(
    folder: Path,
    *,
    layout: Layout = "legacy",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    sharded: bool = False,
    format: Format = "safetensors",
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes the checkpoint of `seed` (or `tensors`, by legacy names) in one of the four layouts; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    legacy = tiny_qwen_vl_tensors(seed=seed, dtype=dtype) if tensors is None else tensors
    named = {layout_name(name, layout): tensor for name, tensor in legacy.items()}
    shards = _halves(named) if sharded else [named]
    stem, suffix = ("model", "safetensors") if format == "safetensors" else ("pytorch_model", "bin")
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.{suffix}" for i in range(len(shards))]
    if sharded:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in named.values())
        write_json(
            folder / f"{stem}.{suffix}.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    else:
        files = [f"{stem}.{suffix}"]
    for file, shard in zip(files, shards, strict=True):
        _save(shard, folder / file, format)
    (folder / "config.json").write_text(json.dumps(tiny_qwen_vl_config(layout, dtype), indent=2))
    return folder


def tiny_qwen_vl_tensors(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights by their names in a hub file; the same for a seed whatever the layout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tiny_qwen_vl_shapes().items():
        is_norm = len(shape) == 1 and name.endswith(".weight")
        values = 0.1 * torch.randn(shape, generator=generator) + (1.0 if is_norm else 0.0)
        tensors[name] = values.to(dtype)
    return tensors


def tiny_qwen_vl_shapes() -> dict[str, tuple[int, ...]]:
    """Legacy name -> shape of every tensor, as in `Qwen/Qwen2.5-VL-3B-Instruct` but small; the head is tied."""
    width, inner, hidden, text_inner = 32, 48, 48, 64
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (width, 3, 2, 14, 14)}
    for i in range(2):
        block = f"visual.blocks.{i}"
        shapes |= {f"{block}.norm{n}.weight": (width,) for n in (1, 2)}
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.gate_proj", inner, width) | _linear(f"{block}.mlp.up_proj", inner, width)
        shapes |= _linear(f"{block}.mlp.down_proj", width, inner)
    shapes |= {"visual.merger.ln_q.weight": (width,)}
    shapes |= _linear("visual.merger.mlp.0", 4 * width, 4 * width) | _linear("visual.merger.mlp.2", hidden, 4 * width)
    shapes |= {"model.embed_tokens.weight": (96, hidden), "model.norm.weight": (hidden,)}
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= _linear(f"{layer}.self_attn.q_proj", hidden, hidden)
        shapes |= _linear(f"{layer}.self_attn.k_proj", hidden // 2, hidden)
        shapes |= _linear(f"{layer}.self_attn.v_proj", hidden // 2, hidden)
        shapes |= {f"{layer}.self_attn.o_proj.weight": (hidden, hidden)}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (text_inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (hidden, text_inner)}
    return shapes


def tiny_qwen_vl_config(layout: Layout = "legacy", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json: text fields flat as on the hub for the legacy layout, nested as v5 saves them for the others."""
    common = {
        "architectures": ["Qwen2_5_VLModel" if layout == "base_model" else "Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "image_token_id": 90,
        "video_token_id": 91,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
        "vision_config": VISION | {"model_type": "qwen2_5_vl"},
    }
    if layout == "legacy":
        return common | TEXT
    return common | {"text_config": TEXT | {"model_type": "qwen2_5_vl_text", "tie_word_embeddings": True}}


def layout_name(legacy: str, layout: Layout) -> str:
    """A hub name as the given layout writes it."""
    prefix = next(prefix for prefix in PREFIXES[layout] if legacy.startswith(prefix))
    return PREFIXES[layout][prefix] + legacy.removeprefix(prefix)


def _linear(name: str, num_out: int, num_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _halves(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    items = list(tensors.items())
    return [dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])]


def _save(tensors: dict[str, Tensor], path: Path, format: Format) -> None:
    if format == "safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=format == "bin")
