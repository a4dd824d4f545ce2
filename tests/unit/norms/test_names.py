"""Norms that store w and multiply by 1 + w: which they are, and what is said of them."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tests.unit.norms import zoo
from tests.unit.norms.test_analyze import TOLERANCE, numpy_of, run

from subspacelab.norms.analysis import AROUND_ZERO
from subspacelab.norms.comparison import comparison_table
from subspacelab.norms.names import AS_STORED, LAYER_NORMS, ZERO_CENTRED, is_zero_centred, zero_centred_type

GEMMA: zoo.Shapes = {
    "model.embed_tokens.weight": (20, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_norm.weight": (4,),
    "model.norm.weight": (8,),
    "vision_tower.vision_model.post_layernorm.weight": (8,),
    "vision_tower.vision_model.post_layernorm.bias": (8,),
    "multi_modal_projector.mm_soft_emb_norm.weight": (8,),
}


def write(folder: Path, config: dict, shapes: zoo.Shapes = GEMMA) -> tuple[Path, dict[str, torch.Tensor]]:
    model = zoo.Model(config, shapes, torch.bfloat16)
    tensors = model.tensors(seed=3)
    return zoo.write_model(folder, model, tensors=tensors), tensors


def test_statistics_are_of_the_scale_that_multiplies(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    folder, tensors = write(tmp_path, config)
    analysis = run(folder, all_norms=True)
    for layer, entry in analysis.to_json()["norm_layers"].items():
        w = numpy_of(tensors[f"{layer}.weight"])
        centred = "vision_tower" not in layer
        scale = 1 + w if centred else w
        expected = {"mean": scale.mean(), "abs_mean": abs(scale).mean(), "std": scale.std()}
        expected |= {"min": scale.min(), "max": scale.max()}
        assert {key: entry[key] for key in expected} == pytest.approx(expected, rel=TOLERANCE)
        assert entry.get("zero_centered", False) is centred
        assert entry.get("stored_mean") == (pytest.approx(w.mean(), rel=1e-9) if centred else None)
    table = comparison_table([analysis])
    row = table[table["layer"] == "model.norm"].iloc[0]
    assert row["mean"] == pytest.approx(1 + row["stored_mean"], rel=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": "llama"}, None),
        ({"model_type": "moonshine_streaming"}, "moonshine_streaming"),
        ({"model_type": "gemma3n"}, None),  # the third Gemma stores the scale itself
        ({"architectures": ["Gemma3ForCausalLM"]}, "gemma3"),
        ({"architectures": ["Gemma3TextModel"]}, "gemma3_text"),
        ({"architectures": ["Qwen3NextForCausalLM"]}, "qwen3_next"),
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma2"}}, "gemma2"),
        ({"model_type": "paligemma", "text_config": {"hidden_size": 8}}, "paligemma"),
        ({"model_type": "llava", "text_config": {"model_type": "gemma"}}, "gemma"),
        ({"model_type": "paligemma", "text_config": {"model_type": "llama"}}, None),
        ({"model_type": "colpali", "vlm_config": {"model_type": "paligemma", "text_config": {}}}, "paligemma"),
        ({"text_config": "none", "vlm_config": {"model_type": ["gemma"]}}, None),
        ({}, None),
    ],
)
def test_the_language_part_decides(config: dict, expected: str | None) -> None:
    assert zero_centred_type(config) == expected


@pytest.mark.parametrize(
    ("model_type", "layer", "norm_type", "expected"),
    [
        ("gemma3", "model.norm", "RMSNorm", True),
        ("gemma3", "vision_tower.vision_model.post_layernorm", "LayerNorm", False),
        ("qwen3_next", "model.layers.0.input_layernorm", "RMSNorm", True),
        ("qwen3_next", "model.layers.0.linear_attn.norm", "RMSNorm", False),
        ("qwen3_5", "visual.merger.norm", "LayerNorm", False),
        ("nemotron", "model.norm", "LayerNorm", True),
        ("muse_glimmer", "model.norm", "RMSNorm", False),
        (None, "model.norm", "RMSNorm", False),
    ],
)
def test_which_norms_of_such_a_model(model_type: str | None, layer: str, norm_type: str, expected: bool) -> None:
    assert is_zero_centred(model_type, layer, norm_type) is expected


def test_of_an_unknown_family_a_mean_near_zero_is_doubted(tmp_path: Path) -> None:
    shapes: zoo.Shapes = {"model.embed_tokens.weight": (20, 8), "model.norm.weight": (8,), "model.a_norm.weight": (8,)}
    model = zoo.Model({"model_type": "novel"}, shapes, torch.float32)
    tensors = model.tensors() | {"model.norm.weight": torch.full((8,), -0.01), "model.a_norm.weight": torch.ones(8)}
    analysis = run(zoo.write_model(tmp_path / "novel", model, tensors=tensors))
    entries = analysis.to_json()["norm_layers"]
    assert entries["model.norm"]["warning"] == AROUND_ZERO
    assert "warning" not in entries["model.a_norm"]
    assert f"1 of 2 norm layers, such as model.norm: {AROUND_ZERO}" in analysis.warnings
    for config in ({"model_type": "gemma"}, {"model_type": "llama"}, {"architectures": ["LlamaForCausalLM"]}):
        model = zoo.Model(config, shapes, torch.float32)
        known = run(zoo.write_model(tmp_path / str(config), model, tensors=tensors))
        assert not any("around zero" in warning for warning in known.warnings)


def test_all_weights_zero_are_a_model_too(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = {name: torch.zeros_like(tensor) for name, tensor in model.tensors().items()}
    report = run(zoo.write_model(tmp_path, model, tensors=tensors)).to_json()
    assert report["norm_layers"]["model.norm"]["abs_mean"] == 0
    assert report["embedding_layers"]["model.embed_tokens.weight"]["norm_max"] == 0


ONE_PLUS = re.compile(r"1(?:\.0)? ?\+ ?self\.weight|self\.weight(?:\.float\(\))? ?\+ ?1")


def test_the_table_has_every_family_of_transformers_that_multiplies_by_one_plus_w() -> None:
    folders = list((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"))
    found = {path.parent for path in folders if ONE_PLUS.search(path.read_text(encoding="utf-8"))}
    assert {path.name for path in found} >= {"gemma", "gemma2", "gemma3", "qwen3_next", "nemotron"}
    missing, plain = [], set()
    for folder in {path.parent for path in folders}:
        for path in folder.glob("configuration_*.py"):
            declared = re.findall(r'^    model_type = "(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
            if folder not in found:
                plain |= set(declared)
            else:
                missing += [t for t in declared if t not in ZERO_CENTRED and not re.search("vision|audio", t)]
    assert missing == []
    assert plain >= AS_STORED
    assert set(LAYER_NORMS) <= set(ZERO_CENTRED)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "qwen3_next", "qwen3_5_text", "nemotron", "t5gemma"])
def test_the_table_agrees_with_the_classes(model_type: str) -> None:
    import inspect

    from transformers import AutoConfig, AutoModel

    more = {"num_key_value_heads": 8} if model_type == "nemotron" else {}
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **more))
    norms = {name: module for name, module in model.named_modules() if "Norm" in type(module).__name__}
    assert norms
    for name, module in norms.items():
        kind = "LayerNorm" if getattr(module, "bias", None) is not None else "RMSNorm"
        expected = bool(ONE_PLUS.search(inspect.getsource(type(module).forward)))
        assert is_zero_centred(model_type, name, kind) is expected, name
