"""Families, the names of norm layers, and their counts at the sizes that are published, all without any data."""

from pathlib import Path

import pytest
from tests.unit.norms import zoo

from subspacelab.checkpoints import open_source
from subspacelab.norms.detection import detect_family
from subspacelab.norms.family_table import FAMILIES
from subspacelab.norms.names import parse_norm
from subspacelab.norms.survey import expected_norms, survey

BY_NAME = {family.name: family for family in FAMILIES}
QWEN_DEPTHS = {"0.5B": (24, 49), "1.5B": (28, 57), "3B": (36, 73), "7B": (28, 57)}
QWEN_DEPTHS |= {"14B": (48, 97), "32B": (64, 129), "72B": (80, 161)}
VL_DEPTHS = {"3B": (36, 138), "7B": (28, 122), "32B": (64, 194), "72B": (80, 226)}
KIMI_VISION = zoo.moonvit(1152, 27, 4304, 64, "vision_tower.")
FULL = {
    "qwen2": (zoo.qwen2(896, 24, 128, 4864, 151936), 494_032_768, 49),
    "qwen2_5_vl": (zoo.qwen2_5_vl(2048, 36, 1280, 32, (256, 11008, 151936, 3420)), 3_754_622_976, 138),
    "vit": (zoo.vit(768, 12, 3072, 16, 14, 1000), 86_567_656, 25),
    "siglip": (zoo.siglip(768, 12, 3072, 32000, (64, 196)), 203_155_970, 51),
    "molmo": (zoo.molmo(3584, 28, 1024, (152064, 128, 4608, 37888, 4096, 577)), 8_021_025_280, 104),
    "moonvit": (zoo.moonvit(1152, 27, 4304, 64), 416_866_032, 55),
    "kimi_vl": (zoo.kimi_vl(2048, 27, 64, (163840, 1408, 11264), KIMI_VISION), 16_407_656_912, 138),
}
EMBEDDING_RELATED = {"qwen2": 3, "qwen2_5_vl": 6, "vit": 3, "siglip": 18, "molmo": 6, "moonvit": 3, "kimi_vl": 7}
NUM_EMBEDDINGS = {"qwen2": 1, "qwen2_5_vl": 2, "vit": 3, "siglip": 0, "molmo": 4, "moonvit": 2, "kimi_vl": 3}


@pytest.mark.parametrize("size", QWEN_DEPTHS)
def test_norms_of_every_qwen2_5_by_its_config(size: str) -> None:
    depth, count = QWEN_DEPTHS[size]
    assert expected_norms(BY_NAME["qwen2"], {"model_type": "qwen2", "num_hidden_layers": depth}) == {"text": count}


@pytest.mark.parametrize("size", VL_DEPTHS)
@pytest.mark.parametrize("nested", [False, True])
def test_norms_of_every_qwen2_5_vl_by_its_config(size: str, nested: bool) -> None:
    depth, count = VL_DEPTHS[size]
    text = {"num_hidden_layers": depth}
    config = {"vision_config": {"depth": 32}} | ({"text_config": text} if nested else text)
    expected = expected_norms(BY_NAME["qwen2_5_vl"], config)
    assert expected == {"text": 2 * depth + 1, "vision": 65}
    assert sum(expected.values()) == count


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("vit", {"model_type": "vit"}, {"vision": 25}),
        ("vit", {"num_hidden_layers": 24}, {"vision": 49}),
        ("siglip", {"text_config": {}, "vision_config": {}}, {"text": 25, "vision": 26}),
        (
            "siglip",  # so400m
            {"text_config": {"num_hidden_layers": 27}, "vision_config": {"num_hidden_layers": 27}},
            {"text": 55, "vision": 56},
        ),
        ("siglip", {"text_config": {}, "vision_config": {"vision_use_head": False}}, {"text": 25, "vision": 25}),
        ("siglip_vision_model", {"num_hidden_layers": 27}, {"vision": 56}),
        ("molmo", {"num_hidden_layers": 28, "attention_layer_norm": False}, {"text": 57, "vision": 47}),
        ("molmo", {"num_hidden_layers": 32, "attention_layer_norm": True}, {"text": 129, "vision": 47}),
        ("moonvit", {"num_hidden_layers": 27}, {"vision": 55}),
        (
            "kimi_vl",
            {"text_config": {"num_hidden_layers": 27, "q_lora_rank": None}, "vision_config": {"num_hidden_layers": 27}},
            {"text": 82, "vision": 55, "projector": 1},
        ),
        (
            "kimi_vl",
            {"text_config": {"num_hidden_layers": 2, "q_lora_rank": 8}, "vision_config": {"num_hidden_layers": 2}},
            {"text": 9, "vision": 5, "projector": 1},
        ),
    ],
)
def test_norms_of_the_other_families_by_their_configs(family: str, config: dict, expected: dict) -> None:
    assert expected_norms(BY_NAME[family], config) == expected


def test_a_config_without_a_depth_is_said_so() -> None:
    with pytest.raises(ValueError, match="num_hidden_layers is None"):
        expected_norms(BY_NAME["qwen2"], {"model_type": "qwen2"})


@pytest.mark.parametrize("name", FULL)
def test_the_headers_of_full_size_files_give_the_published_counts(name: str, tmp_path: Path) -> None:
    model, num_parameters, count = FULL[name]
    with open_source(zoo.write_sparse(tmp_path, model)) as checkpoint:
        assert checkpoint.num_entries == num_parameters
        found = survey(checkpoint)
    assert found.detected.model_type == name
    assert found.warnings == ()
    assert len(found.norms) == count
    assert len(found.embeddings) == NUM_EMBEDDINGS[name]
    assert sum(n.name.reads_embedding for n in found.norms) == (7 if name == "siglip" else EMBEDDING_RELATED[name])


@pytest.mark.parametrize("name", zoo.TINY)
@pytest.mark.parametrize("kept", [("architectures",), ()])
def test_without_model_type_the_classes_decide_and_then_the_keys(name: str, kept: tuple, tmp_path: Path) -> None:
    model = zoo.TINY[name]()
    found = detect_family({key: model.config[key] for key in kept}, model.shapes)
    assert found.model_type == name
    assert found.found_by == (
        f"architectures {model.config['architectures'][0]}" if kept else "the names of its weights"
    )


@pytest.mark.parametrize("name", zoo.TINY)
def test_without_any_config_the_count_is_checked_against_the_depth_found(name: str, tmp_path: Path) -> None:
    folder = zoo.write_model(tmp_path, zoo.TINY[name]())
    (folder / "config.json").unlink()
    with open_source(folder) as checkpoint:
        assert survey(checkpoint).warnings == ()


def test_relatives_are_unknown_whatever_their_keys_look_like() -> None:
    keys = zoo.qwen2_5_vl().shapes
    assert detect_family({"model_type": "qwen9_vl"}, keys).model_type == "unknown"
    qwen2_vl = {**keys, "visual.blocks.0.mlp.fc1.weight": (4, 4), "visual.blocks.0.norm1.bias": (4,)}
    assert detect_family({}, qwen2_vl).model_type == "unknown"
    assert detect_family({}, {"model.layers.0.self_attn.q_proj.weight": (4, 4)}).model_type == "unknown"
    assert detect_family({"model_type": "siglip2"}, []).model_type == "siglip2"


@pytest.mark.parametrize(
    "name",
    [
        *("visual.merger.ln_q", "model.transformer.ln_f", "vit.pre_ln", "vision_model.pre_layrnorm", "h.0.ln_1"),
        "blocks.0.ln2",
        *("encoder.blocks.3.norm0", "encoder.blocks.3.norm1", "blocks.0.ff_norm", "resblocks.1.ffn_norm"),
        *("x.attention_norm", "model.layers.4.self_attn.kv_a_layernorm", "a.q_norm", "encoder.final_layernorm"),
        *("vision_model.head.layernorm", "norms.0", "stem_bn", "final_rms", "model.norm", "bert.LayerNorm"),
    ],
)
def test_names_of_norms(name: str) -> None:
    found = parse_norm(f"{name}.weight", 1)
    assert found is not None
    assert (found.layer, found.bias) == (name, f"{name}.bias")


@pytest.mark.parametrize(
    ("name", "num_dims"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 1),
        ("model.layers.1.mlp.gate.e_score_correction_bias", 1),
        ("vision_model.head.attention.in_proj_weight", 2),
        ("logit_scale", 1),
        ("layer.layernorm.mlp.fc1.weight", 2),
        ("layernorm.linear.weight", 1),
        ("bn.running_mean", 1),
        ("model.norm.bias", 1),
        ("model.norm.weight.absmax", 1),
        ("norm.weight", 2),
        ("class_embedding", 1),
        ("kiln.weight", 1),
    ],
)
def test_what_looks_like_a_norm_and_is_none(name: str, num_dims: int) -> None:
    assert parse_norm(name, num_dims) is None


def test_old_scales_of_tensorflow_are_read_with_their_shift() -> None:
    found = parse_norm("bert.embeddings.LayerNorm.gamma", 1)
    assert found is not None
    assert found.bias == "bert.embeddings.LayerNorm.beta"


def test_blocks_kinds_and_what_reads_the_embedding() -> None:
    first = parse_norm("model.layers.0.input_layernorm.weight", 1)
    later = parse_norm("model.layers.11.input_layernorm.weight", 1)
    inner = parse_norm("model.layers.0.self_attn.q_norm.weight", 1)
    final = parse_norm("model.norm.weight", 1)
    assert first is not None
    assert later is not None
    assert inner is not None
    assert final is not None
    assert (first.block, later.block, final.block) == (0, 11, None)
    assert first.kind == later.kind == "model.layers.{}.input_layernorm"
    assert [n.reads_embedding for n in (first, later, inner, final)] == [True, False, False, True]
