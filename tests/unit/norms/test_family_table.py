"""Every row of the table against transformers' own classes: a tiny model of each, saved as transformers saves it."""

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSpeechSeq2Seq,
)

from subspacelab.checkpoints import open_source, read_tensors, write_tensors
from subspacelab.norms.detection import detect_family
from subspacelab.norms.family_table import FAMILIES
from subspacelab.norms.survey import Survey, expected_norms, survey

SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "projection_dim", "projector_dim", "output_dim"), 32),
    **dict.fromkeys(("embed_dim", "out_hidden_size", "vision_output_dim", "projector_output_dim", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers", "depth"), 3),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "projector_input_dim"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(
        ("vocab_size", "vocab_size_per_layer_input", "num_position_embeddings", "max_position_embeddings"), 96
    ),
    **dict.fromkeys(("max_source_positions", "max_target_positions", "n_positions", "num_mel_bins"), 64),
    **{"image_size": 28, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 1, "num_register_tokens": 2},
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
BY_HAND = {"molmo", "kimi_vl", "moonvit", "gemma3n"}
"""No class in transformers, or one that needs timm; test_families.py proves the first three on the hub's keys."""
BUILT = [(model_type, {}) for family in FAMILIES for model_type in family.model_types if model_type not in BY_HAND]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v2", {"q_lora_rank": None}),
    ("glm4_moe", {"use_qk_norm": True}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"parallel_attn": False}),
    ("qwen3_next", {"num_hidden_layers": 9}),
    ("gemma3n_text", {"num_kv_shared_layers": 0}),
    ("siglip_vision_model", {"vision_use_head": False}),
    ("internvl", {"vision_config": {"use_qk_norm": True, "use_mean_pooling": False}}),
    ("internvl", {"text_config": {"model_type": "qwen3"}}),
    ("paligemma", {"text_config": {"model_type": "gemma2"}}),
    ("idefics3", {"text_config": {"model_type": "gpt_neox"}}),
]


def small(model_type: str, overrides: Mapping[str, Any]) -> Any:
    """A config of this type at a small size, section by section."""
    found: dict[str, Any] = {}
    for key, value in AutoConfig.for_model(model_type).to_dict().items():
        over = overrides.get(key, {})
        if (
            isinstance(value, Mapping)
            and isinstance(over, Mapping)
            and key.endswith("_config")
            and "model_type" in value
        ):
            inner = over.get("model_type", value["model_type"])
            found[key] = small(inner, over).to_dict()
        elif value is not None and key in SMALL | TOKENS:
            found[key] = (SMALL | TOKENS)[key]
    plain = {key: value for key, value in overrides.items() if not isinstance(value, Mapping) and key != "model_type"}
    return AutoConfig.for_model(model_type, **{**found, **plain})


def build(model_type: str, overrides: Mapping[str, Any]) -> Any:
    """The model that people save of such a checkpoint, with random weights."""
    config = small(model_type, overrides)
    for kind in (AutoModelForImageTextToText, AutoModelForSpeechSeq2Seq, AutoModelForCausalLM, AutoModel):
        if type(config) in kind._model_mapping:
            return kind.from_config(config)
    raise AssertionError(f"{model_type}: no class")


@torch.no_grad()
def what_it_is(norm: nn.Module) -> tuple[str, bool, tuple[int, ...]]:
    """Type, whether it multiplies by 1 + w, and shape: told by what it does to numbers, not by its name."""
    weight: Any = norm.weight
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()  # type: ignore[operator]

    def applied(w: float, x: Tensor) -> float:
        weight.fill_(w)
        more = [torch.ones_like(x)] if "gate" in inspect.signature(norm.forward).parameters else []
        return float(norm(x, *more).abs().max())

    x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0))
    centred = applied(0.0, x) > 0.1
    removes_mean = applied(1.0, torch.ones_like(x)) < 1e-3
    return "LayerNorm" if removes_mean else "RMSNorm", centred, tuple(weight.shape)


def norms_of(model: nn.Module) -> Counter[tuple[str, bool, tuple[int, ...]]]:
    return Counter(
        what_it_is(module)
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and isinstance(getattr(module, "weight", None), nn.Parameter)
    )


@pytest.mark.parametrize(("model_type", "overrides"), [*BUILT, *VARIANTS])
def test_names_counts_types_and_scales_are_those_of_the_classes(
    model_type: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    model = build(model_type, overrides)
    model.save_pretrained(tmp_path)
    with open_source(tmp_path) as checkpoint:
        found = survey(checkpoint)
    family = found.detected.family
    assert family is not None
    assert found.detected.model_type == model_type
    assert found.warnings == ()  # no count, type or embedding that differs, no one-dimensional weight left over
    shapes = {n.key: tuple(model_shape) for n, model_shape in zip(found.norms, shapes_of(tmp_path, found), strict=True)}
    assert Counter((n.type, n.zero_centred, shapes[n.key]) for n in found.norms) == norms_of(model)
    by_class = detect_family({"architectures": [type(model).__name__]}, ()).family
    # A text-only model may share its class with the whole one.
    assert by_class is not None
    assert {model_type, model_type.removesuffix("_text")} & {by_class.name, *by_class.also}


def shapes_of(folder: Path, found: Survey) -> Iterator[tuple[int, ...]]:
    with open_source(folder) as checkpoint:
        yield from (checkpoint.info(norm.key).shape for norm in found.norms)


@pytest.mark.parametrize("missing", ["input_layernorm", "embed_tokens", "mlp.gate"])
def test_what_a_known_family_lacks_is_said(missing: str, tmp_path: Path) -> None:
    model = build("qwen3_moe", {})
    model.save_pretrained(tmp_path / "whole")
    tensors = read_tensors(tmp_path / "whole" / "model.safetensors")[0]
    kept = {name: tensor for name, tensor in tensors.items() if missing not in name}
    write_tensors(tmp_path / "model.safetensors", kept)
    (tmp_path / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    with open_source(tmp_path) as checkpoint:
        (warning,) = survey(checkpoint).warnings
    assert {
        "input_layernorm": "text: 10 norm layers, expected 13 of Qwen3-MoE by config.json",
        "embed_tokens": "qwen3_moe: no token embedding under any of the usual names",
        "mlp.gate": "qwen3_moe: no expert router embedding under any of the usual names",
    }[missing] == warning


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen3_next", "gemma3n_text"])
def test_what_only_some_files_hold_is_found_and_not_counted(model_type: str, tmp_path: Path) -> None:
    """Blocks that predict ahead, as the hub's files have them and transformers' do not; unused norms of old files."""
    build(model_type, {}).save_pretrained(tmp_path)
    with open_source(tmp_path) as checkpoint:
        before = len(survey(checkpoint).norms)
    tensors = read_tensors(tmp_path / "model.safetensors")[0]
    more = {
        "deepseek_v3": ("model.layers.3.enorm", "model.layers.3.shared_head.norm", "model.layers.3.input_layernorm"),
        "qwen3_next": ("mtp.norm", "mtp.layers.0.input_layernorm", "mtp.pre_fc_norm_embedding"),
        "gemma3n_text": ("model.layers.2.self_attn.k_norm",),
    }[model_type]
    write_tensors(tmp_path / "model.safetensors", tensors | {f"{name}.weight": torch.ones(32) for name in more})
    with open_source(tmp_path) as checkpoint:
        found = survey(checkpoint)
    assert (len(found.norms), found.warnings) == (before + len(more), ())


def test_a_config_of_the_hub_that_leaves_out_what_is_usual_is_counted_too() -> None:
    def expected(config: dict[str, Any]) -> dict[str, int]:
        family = detect_family(config, ()).family
        assert family is not None
        return expected_norms(family, config)

    next_80b = {"model_type": "qwen3_next", "num_hidden_layers": 48, "full_attention_interval": 4}
    assert expected(next_80b) == {"text": 3 * 48 + 12 + 1}
    vl = {"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 36}, "vision_config": {"depth": 27}}
    assert expected(vl) == {"text": 145, "vision": 58}
    assert expected({"model_type": "clip", "text_config": {}, "vision_config": {}}) == {"text": 25, "vision": 26}
    gemma = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}}
    gemma |= {"vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 27, "vision_use_head": False}}
    assert expected(gemma) == {"text": 6 * 34 + 1, "vision": 55, "projector": 1}


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "qwen3_vl",
            "num_hidden_layers": 3,
            "vision_config": {"depth": 2, "deepstack_visual_indexes": 5},
        },
        {"model_type": "qwen3_next", "num_hidden_layers": 3, "full_attention_interval": "x"},
        {"model_type": "gemma3", "text_config": {"model_type": ["x"]}},
        {"model_type": "llama", "num_hidden_layers": "two"},
    ],
)
def test_a_config_that_makes_no_sense_is_said_in_one_line(config: dict[str, Any]) -> None:
    family = detect_family(config, ()).family
    assert family is not None
    with pytest.raises(ValueError, match=r"^config\.json: .*; restore it$"):
        expected_norms(family, config)


def test_the_table_has_no_type_twice() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


def test_the_page_lists_every_row() -> None:
    page = (Path(__file__).parents[3] / "docs" / "your-models.md").read_text()
    for family in FAMILIES:
        types = ", ".join(f"`{model_type}`" for model_type in family.model_types)
        kinds = dict.fromkeys([*family.kinds, *(e.kind for e in family.embeddings)])
        assert f"| {family.label} ({types}) | {', '.join(kinds) or 'none'} |" in page
