import random

import pytest
from tests.tiny import LAYOUTS, layout_name, tiny_qwen_vl_shapes
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints.tensors import canonical_keys, canonical_name, unmerged_adapter


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_to_the_hub_name(layout):
    hub_names = list(tiny_qwen_vl_shapes())
    assert [canonical_name(layout_name(name, layout)) for name in hub_names] == hub_names


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("module.module._orig_mod.lm_head.weight", "lm_head.weight"),
        ("language_model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),  # Kimi-VL keeps its own
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("model.vision_backbone.image_vit.pre_ln.weight", "model.vision_backbone.image_vit.pre_ln.weight"),
        ("modules.0.weight", "modules.0.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.model.layers.3._fsdp_wrapped_module.mlp.module.w", "model.layers.3.mlp.w"),
        ("model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.embed_tokens.original_module.weight", "model.embed_tokens.weight"),
        ("base_model.model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("layers.0.mlp.fc1.weight", "layers.0.mlp.fc1.weight"),  # of a vision tower
        ("encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.self_attn.q_proj.weight"),
        ("model.submodule.base_layers.weight", "model.submodule.base_layers.weight"),
    ],
)
def test_known_families(raw, expected):
    assert canonical_name(raw) == expected


def test_twice_is_once_on_any_sequence_of_parts():
    rng = random.Random(0)
    parts = ["module", "_orig_mod", "base_model", "model", "visual", "language_model", "lm_head", "weight"]
    parts += ["base_layer", "layers", "0", "mlp", "norm", "embed_tokens"]
    for _ in range(2000):
        once = canonical_name(".".join(rng.choices(parts, k=rng.randint(1, 6))))
        assert canonical_name(once) == once


def test_a_name_of_many_wrappers_is_no_deeper_than_another():
    assert canonical_name("model." + "language_model." * 20_000 + "x") == "model.x"


def test_two_tensors_of_one_canonical_name_are_refused_by_both_names():
    assert canonical_keys(["module.a", "b"]) == {"a": "module.a", "b": "b"}
    message = refusal(canonical_keys, ["b", "a.weight", "module.a.base_layer.weight"])
    assert message.startswith("a.weight and module.a.base_layer.weight: two tensors for one weight")


def test_an_adapter_that_is_not_merged_is_found_by_its_names():
    assert unmerged_adapter(["model.norm.weight", "lora.weight"]) is None
    for name in ("x.lora_A.default.weight", "x.base_layer.weight", "lm_head.modules_to_save.default.weight"):
        assert unmerged_adapter(["model.norm.weight", name]) == name
