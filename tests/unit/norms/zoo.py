"""Checkpoints of the seven families: the hub's key names and shapes at any size, to be written tiny, sparse or not."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
NORM_PARTS = ("norm", "ln_q", "ln_f", "pre_ln")


@dataclass(frozen=True)
class Model:
    """A model as its file's header and config.json describe it."""

    config: dict[str, Any]
    """config.json as on the hub."""
    shapes: Shapes
    """Key -> shape of every tensor."""
    dtype: torch.dtype
    """What the hub stores."""

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Random weights; scales are scattered around 0.3 so that some are negative and mean and abs_mean differ."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (torch.randn(shape, generator=generator) * 0.4 + (0.3 if is_scale(name) else 0.0)).to(self.dtype)
            for name, shape in self.shapes.items()
        }


def is_scale(name: str) -> bool:
    """Whether a key of these models is a norm's scale."""
    layer, _, leaf = name.rpartition(".")
    return leaf == "weight" and any(part in layer.rpartition(".")[2] for part in NORM_PARTS)


def linear(name: str, num_out: int, num_in: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (num_out, num_in)} | ({f"{name}.bias": (num_out,)} if bias else {})


def layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def qwen2_text(width: int, depth: int, kv: int, inner: int, vocab: int, tied: bool) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(depth):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= linear(f"{layer}.self_attn.q_proj", width, width)
        shapes |= linear(f"{layer}.self_attn.k_proj", kv, width) | linear(f"{layer}.self_attn.v_proj", kv, width)
        shapes |= linear(f"{layer}.self_attn.o_proj", width, width, bias=False)
        for part in ("gate", "up"):
            shapes |= linear(f"{layer}.mlp.{part}_proj", inner, width, bias=False)
        shapes |= linear(f"{layer}.mlp.down_proj", width, inner, bias=False)
    return shapes if tied else shapes | {"lm_head.weight": (vocab, width)}


def qwen2(width: int = 24, depth: int = 3, kv: int = 8, inner: int = 40, vocab: int = 64, tied: bool = True) -> Model:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    return Model(config, qwen2_text(width, depth, kv, inner, vocab, tied), torch.bfloat16)


def qwen2_72b() -> Model:
    """Qwen2.5-72B, its tensors by name, as safetensors writes them and the hub has them."""
    model = qwen2(8192, 80, 1024, 29568, 152064, tied=False)
    return Model(model.config, dict(sorted(model.shapes.items())), model.dtype)


def qwen2_5_vl(
    width: int = 24, depth: int = 3, vision: int = 16, blocks: int = 2, sizes: tuple[int, ...] = (8, 40, 64, 20)
) -> Model:
    """`sizes`: width of keys, of the language MLP, vocabulary, width of the vision MLP."""
    kv, inner, vocab, vision_inner = sizes
    shapes = qwen2_text(width, depth, kv, inner, vocab, tied=True)
    shapes |= {"visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14)}
    for i in range(blocks):
        block = f"visual.blocks.{i}"
        shapes |= {f"{block}.norm{n}.weight": (vision,) for n in (1, 2)}
        shapes |= linear(f"{block}.attn.qkv", 3 * vision, vision) | linear(f"{block}.attn.proj", vision, vision)
        shapes |= linear(f"{block}.mlp.gate_proj", vision_inner, vision)
        shapes |= linear(f"{block}.mlp.up_proj", vision_inner, vision)
        shapes |= linear(f"{block}.mlp.down_proj", vision, vision_inner)
    shapes |= {"visual.merger.ln_q.weight": (vision,)}
    shapes |= linear("visual.merger.mlp.0", 4 * vision, 4 * vision) | linear("visual.merger.mlp.2", width, 4 * vision)
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "vision_config": {"depth": blocks, "hidden_size": vision, "model_type": "qwen2_5_vl"},
    }
    return Model(config, shapes, torch.bfloat16)


def vit(width: int = 16, depth: int = 3, inner: int = 32, patch: int = 4, grid: int = 3, classes: int = 5) -> Model:
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.position_embeddings": (1, grid * grid + 1, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
    }
    for i in range(depth):
        layer = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.attention.{part}", width, width)
        shapes |= linear(f"{layer}.attention.output.dense", width, width)
        shapes |= linear(f"{layer}.intermediate.dense", inner, width) | linear(f"{layer}.output.dense", width, inner)
        shapes |= layer_norm(f"{layer}.layernorm_before", width) | layer_norm(f"{layer}.layernorm_after", width)
    shapes |= layer_norm("vit.layernorm", width) | linear("classifier", classes, width)
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "num_hidden_layers": depth}
    return Model(config, shapes, torch.float32)


def siglip(
    width: int = 16, depth: int = 3, inner: int = 32, vocab: int = 30, places: tuple[int, int] = (6, 9)
) -> Model:
    shapes: Shapes = {
        "logit_scale": (1,),
        "logit_bias": (1,),
        "text_model.embeddings.token_embedding.weight": (vocab, width),
        "text_model.embeddings.position_embedding.weight": (places[0], width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 16, 16),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding.weight": (places[1], width),
        "vision_model.head.probe": (1, 1, width),
        "vision_model.head.attention.in_proj_weight": (3 * width, width),
        "vision_model.head.attention.in_proj_bias": (3 * width,),
    }
    for tower in ("text_model", "vision_model"):
        for i in range(depth):
            layer = f"{tower}.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= linear(f"{layer}.self_attn.{part}", width, width)
            shapes |= linear(f"{layer}.mlp.fc1", inner, width) | linear(f"{layer}.mlp.fc2", width, inner)
            shapes |= layer_norm(f"{layer}.layer_norm1", width) | layer_norm(f"{layer}.layer_norm2", width)
    shapes |= layer_norm("text_model.final_layer_norm", width) | linear("text_model.head", width, width)
    shapes |= layer_norm("vision_model.post_layernorm", width) | layer_norm("vision_model.head.layernorm", width)
    shapes |= linear("vision_model.head.attention.out_proj", width, width)
    shapes |= linear("vision_model.head.mlp.fc1", inner, width) | linear("vision_model.head.mlp.fc2", width, inner)
    # On the hub both sections hold little more than their model_type: the depth is the default, 12.
    depths = {} if depth == 12 else {"num_hidden_layers": depth}
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"} | depths,
        "vision_config": {"model_type": "siglip_vision_model"} | depths,
    }
    return Model(config, shapes, torch.float32)


def molmo(
    width: int = 24, depth: int = 3, vision: int = 16, sizes: tuple[int, ...] = (64, 8, 32, 80, 32, 5), blocks: int = 23
) -> Model:
    """`sizes`: vocabulary, new tokens, fused qkv, fused MLP, vision MLP, positions."""
    vocab, new, qkv, inner, vision_inner, places = sizes
    tower = "model.vision_backbone.image_vit"
    shapes: Shapes = {
        "model.transformer.wte.embedding": (vocab, width),
        "model.transformer.wte.new_embedding": (new, width),
        "model.transformer.ln_f.weight": (width,),
        "model.transformer.ff_out.weight": (vocab, width),
        f"{tower}.class_embedding": (vision,),
        f"{tower}.positional_embedding": (places, vision),
        f"{tower}.patch_embedding.weight": (vision, 588),
        "model.vision_backbone.pad_embed": (2, 2 * vision),
    }
    for i in range(depth):
        block = f"model.transformer.blocks.{i}"
        shapes |= linear(f"{block}.att_proj", qkv, width) | linear(f"{block}.attn_out", width, width, bias=False)
        shapes |= linear(f"{block}.ff_proj", inner, width, bias=False)
        shapes |= linear(f"{block}.ff_out", width, inner // 2, bias=False)
        shapes |= {f"{block}.attn_norm.weight": (width,), f"{block}.ff_norm.weight": (width,)}
    shapes |= layer_norm(f"{tower}.pre_ln", vision)
    for i in range(blocks):
        block = f"{tower}.transformer.resblocks.{i}"
        for part in ("wq", "wk", "wv", "wo"):
            shapes |= linear(f"{block}.attention.{part}", vision, vision)
        shapes |= linear(f"{block}.feed_forward.w1", vision_inner, vision)
        shapes |= linear(f"{block}.feed_forward.w2", vision, vision_inner)
        shapes |= layer_norm(f"{block}.attention_norm", vision) | layer_norm(f"{block}.ffn_norm", vision)
    for part in ("wq", "wk", "wv"):
        shapes |= linear(f"model.vision_backbone.image_pooling_2d.{part}", vision, 2 * vision)
    shapes |= linear("model.vision_backbone.image_pooling_2d.wo", vision, vision)
    shapes |= {f"model.vision_backbone.image_projector.{w}.weight": (inner // 2, vision) for w in ("w1", "w3")}
    shapes |= {"model.vision_backbone.image_projector.w2.weight": (width, inner // 2)}
    config = {
        "architectures": ["MolmoForCausalLM"],
        "model_type": "molmo",
        "num_hidden_layers": depth,
        "attention_layer_norm": False,
    }
    return Model(config, shapes, torch.float32)


def moonvit(width: int = 16, depth: int = 3, inner: int = 32, side: int = 4, prefix: str = "") -> Model:
    shapes: Shapes = {
        f"{prefix}patch_embed.proj.weight": (width, 3, 14, 14),
        f"{prefix}patch_embed.proj.bias": (width,),
        f"{prefix}patch_embed.pos_emb.weight": (side, side, width),
    }
    for i in range(depth):
        block = f"{prefix}encoder.blocks.{i}"
        shapes |= layer_norm(f"{block}.norm0", width) | layer_norm(f"{block}.norm1", width)
        shapes |= linear(f"{block}.wqkv", 3 * width, width) | linear(f"{block}.wo", width, width)
        shapes |= linear(f"{block}.mlp.fc0", inner, width) | linear(f"{block}.mlp.fc1", width, inner)
    shapes |= layer_norm(f"{prefix}encoder.final_layernorm", width)
    config = {"architectures": ["MoonVitPretrainedModel"], "model_type": "moonvit", "num_hidden_layers": depth}
    return Model(config, shapes, torch.bfloat16)


def kimi_vl(
    width: int = 24,
    depth: int = 3,
    experts: int = 2,
    sizes: tuple[int, ...] = (64, 12, 40),
    vision: Model | None = None,
) -> Model:
    """`sizes`: vocabulary, width of an expert, of the dense MLP of layer 0; heads as in Kimi-VL-A3B if width is."""
    vocab, expert, dense = sizes
    latent, heads, (nope, rope, value) = (512, 16, (128, 64, 128)) if width == 2048 else (10, 2, (4, 2, 4))
    tower = vision or moonvit(prefix="vision_tower.")
    shapes: Shapes = dict(tower.shapes)
    text = "language_model.model"
    shapes |= {f"{text}.embed_tokens.weight": (vocab, width), f"{text}.norm.weight": (width,)}
    for i in range(depth):
        layer = f"{text}.layers.{i}"
        attention = f"{layer}.self_attn"
        shapes |= {f"{layer}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{attention}.kv_a_layernorm.weight": (latent,), f"{attention}.rotary_emb.inv_freq": (rope // 2,)}
        shapes |= linear(f"{attention}.q_proj", heads * (nope + rope), width, bias=False)
        shapes |= linear(f"{attention}.kv_a_proj_with_mqa", latent + rope, width, bias=False)
        shapes |= linear(f"{attention}.kv_b_proj", heads * (nope + value), latent, bias=False)
        shapes |= linear(f"{attention}.o_proj", width, heads * value, bias=False)
        mlps = {"mlp": dense}
        if i > 0:
            mlps = {f"mlp.experts.{e}": expert for e in range(experts)} | {"mlp.shared_experts": 2 * expert}
            shapes |= {f"{layer}.mlp.gate.weight": (experts, width)}
            shapes |= {f"{layer}.mlp.gate.e_score_correction_bias": (experts,)}
        for name, inner in mlps.items():
            for part in ("gate", "up"):
                shapes |= linear(f"{layer}.{name}.{part}_proj", inner, width, bias=False)
            shapes |= linear(f"{layer}.{name}.down_proj", width, inner, bias=False)
    shapes |= {"language_model.lm_head.weight": (vocab, width)}
    vision_width = tower.shapes["vision_tower.patch_embed.proj.bias"][0]
    shapes |= layer_norm("multi_modal_projector.pre_norm", vision_width)
    shapes |= linear("multi_modal_projector.linear_1", 4 * vision_width, 4 * vision_width)
    shapes |= linear("multi_modal_projector.linear_2", width, 4 * vision_width)
    config = {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "text_config": {"num_hidden_layers": depth, "q_lora_rank": None},
        "vision_config": tower.config,
    }
    return Model(config, shapes, torch.bfloat16)


TINY = {"qwen2": qwen2, "qwen2_5_vl": qwen2_5_vl, "vit": vit, "siglip": siglip, "molmo": molmo}
TINY |= {"moonvit": moonvit, "kimi_vl": kimi_vl}


def write_model(folder: Path, model: Model, *, seed: int = 0, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """Writes config.json and one safetensors file of random weights, or of `tensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(dict(tensors or model.tensors(seed)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_sparse(folder: Path, model: Model, shard_bytes: int = 1 << 30) -> Path:
    """The same at full size, sharded and without its data: holes of zeros, which take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    code, size = ("BF16", 2) if model.dtype == torch.bfloat16 else ("F32", 4)
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for name, shape in model.shapes.items():
        num_bytes = math.prod(shape) * size
        if shards[-1] and end + num_bytes > shard_bytes:
            shards.append({})
        start = max((entry["data_offsets"][1] for entry in shards[-1].values()), default=0)
        end = start + num_bytes
        shards[-1][name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    weight_map: dict[str, str] = {}
    for i, entries in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(entries, file)
        header = json.dumps(entries).encode()
        with (folder / file).open("wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            f.truncate(8 + len(header) + max(entry["data_offsets"][1] for entry in entries.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model.config))
    return folder
