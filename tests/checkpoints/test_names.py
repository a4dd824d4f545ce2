import random

import pytest
from tests.tiny import LAYOUTS, layout_name, tiny_qwen_vl_shapes

from subspacelab.checkpoints.names import canonical_name


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
    ],
)
def test_known_families(raw, expected):
    assert canonical_name(raw) == expected


def test_twice_is_once_on_any_sequence_of_parts():
    rng = random.Random(0)
    parts = ["module", "_orig_mod", "base_model", "model", "visual", "language_model", "lm_head", "weight"]
    for _ in range(2000):
        once = canonical_name(".".join(rng.choices(parts, k=rng.randint(1, 6))))
        assert canonical_name(once) == once
