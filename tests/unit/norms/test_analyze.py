"""Whole analyses of tiny checkpoints: every figure against numpy on the tensors that were written."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import LAYOUTS, write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal
from tests.unit.norms import zoo
from tests.unit.norms.test_families import EMBEDDING_RELATED, NUM_EMBEDDINGS
from torch import Tensor

from subspacelab.checkpoints import Checkpoint, open_source
from subspacelab.norms import analysis as reading
from subspacelab.norms.analysis import analyze
from subspacelab.norms.results import Analysis

# float64 sums of at most 20,000 terms in another order.
TOLERANCE = 1e-11
TOP_LEVEL = {"model_name", "model_type", "device", "embedding_layers", "norm_layers"}
TOP_LEVEL |= {"total_embedding_layers", "total_norm_layers"}


def run(folder: Path, *, all_norms: bool = False) -> Analysis:
    with open_source(folder) as checkpoint:
        return analyze(checkpoint, device="cpu", all_norms=all_norms)


def numpy_of(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def rows_of(kind: str, tensor: Tensor) -> np.ndarray:
    """The vectors: filters of a patch embedding, else the last axis."""
    a = numpy_of(tensor)
    return a.reshape(a.shape[0], -1) if kind == "patch" else a.reshape(-1, a.shape[-1])


@pytest.mark.parametrize("name", zoo.TINY)
def test_every_statistic_of_every_family_is_numpys(name: str, tmp_path: Path) -> None:
    model = zoo.TINY[name]()
    tensors = model.tensors(seed=1)
    report = run(zoo.write_model(tmp_path, model, tensors=tensors), all_norms=True).to_json()
    assert set(report) == TOP_LEVEL
    assert (report["model_name"], report["model_type"], report["device"]) == (tmp_path.name, name, "cpu")
    assert report["total_embedding_layers"] == len(report["embedding_layers"]) == NUM_EMBEDDINGS[name]
    for key, entry in report["embedding_layers"].items():
        rows = rows_of(entry["kind"], tensors[key])
        norms = np.linalg.norm(rows, axis=1)
        assert entry["embedding_shape"] == list(tensors[key].shape)
        assert (entry["vocab_size"], entry["embedding_dim"]) == rows.shape
        expected = {"norm_mean": norms.mean(), "norm_std": norms.std(), "norm_min": norms.min()}
        expected |= {"norm_max": norms.max(), "weight_mean": rows.mean(), "weight_abs_mean": np.abs(rows).mean()}
        expected |= {"weight_std": rows.std()}
        assert {k: entry[k] for k in expected} == pytest.approx(expected, rel=TOLERANCE)
    scales = [key for key in model.shapes if zoo.is_scale(key)]
    assert report["norm_layers"].keys() == {key.removesuffix(".weight") for key in scales}
    assert report["total_norm_layers"] == len(scales)
    for layer, entry in report["norm_layers"].items():
        for part, suffix in ((entry, "weight"), (entry["bias"], "bias")):
            stored = tensors.get(f"{layer}.{suffix}")
            if stored is None:
                assert (suffix, part, entry["type"]) == ("bias", None, "RMSNorm")
                continue
            a = numpy_of(stored)
            expected = {"mean": a.mean(), "abs_mean": np.abs(a).mean(), "std": a.std(), "min": a.min(), "max": a.max()}
            assert {k: part[k] for k in expected} == pytest.approx(expected, rel=TOLERANCE)
            assert part["param_count" if part is entry else "count"] == a.size
        assert entry["type"] == ("LayerNorm" if entry["bias"] else "RMSNorm")
        assert entry["shape"] == list(tensors[f"{layer}.weight"].shape)


@pytest.mark.parametrize("name", zoo.TINY)
def test_by_default_the_norms_that_read_the_embedding_are_reported(name: str, tmp_path: Path) -> None:
    analysis = run(zoo.write_model(tmp_path, zoo.TINY[name]()))
    count = 15 if name == "siglip" else EMBEDDING_RELATED[name]  # 2 * 3 + 1 of the text, 2 * 3 + 2 of the vision tower
    assert analysis.to_json()["total_norm_layers"] == len(analysis.reported) == count
    assert analysis.warnings == ()
    assert len(analysis.norm_layers) == sum(map(zoo.is_scale, zoo.TINY[name]().shapes))


def test_position_tables_patches_and_both_tables_of_molmo(tmp_path: Path) -> None:
    moonvit = run(zoo.write_model(tmp_path / "moonvit", zoo.moonvit(side=5))).to_json()["embedding_layers"]
    assert (moonvit["patch_embed.pos_emb.weight"]["vocab_size"], 16) == (25, 16)
    assert moonvit["patch_embed.proj.weight"]["embedding_dim"] == 3 * 14 * 14
    molmo = run(zoo.write_model(tmp_path / "molmo", zoo.molmo())).to_json()["embedding_layers"]
    new = molmo["model.transformer.wte.new_embedding"]
    assert new["vocab_size"] == 8
    assert {vector["id"] for vector in new["smallest"]} == set(range(64, 72))
    vit = run(zoo.write_model(tmp_path / "vit", zoo.vit())).to_json()["embedding_layers"]
    assert [entry["vocab_size"] for entry in vit.values()] == [16, 10, 1]
    assert vit["vit.embeddings.cls_token"]["norm_std"] == 0


def test_kimis_inner_norms_and_traps(tmp_path: Path) -> None:
    layers = run(zoo.write_model(tmp_path, zoo.kimi_vl()), all_norms=True).to_json()["norm_layers"]
    assert layers["language_model.model.layers.2.self_attn.kv_a_layernorm"]["shape"] == [10]
    assert layers["vision_tower.encoder.blocks.1.norm0"]["block"] == 1
    assert not any(trap in layer for layer in layers for trap in ("rotary", "gate", "linear"))


def test_the_four_layouts_of_qwen2_5_vl_give_one_result(tmp_path: Path) -> None:
    reports = []
    for layout in LAYOUTS:
        folder = write_tiny_qwen_vl(tmp_path / layout / "same", layout=layout, sharded=layout != "raw")
        reports.append(run(folder, all_norms=True).to_json())
    assert all(report == reports[0] for report in reports)
    assert reports[0]["total_norm_layers"] == 10


def test_types_come_from_the_file_and_a_difference_is_said(tmp_path: Path) -> None:
    model = zoo.moonvit()
    tensors = {k: t for k, t in model.tensors().items() if not k.endswith(("norm0.bias", "norm1.bias"))}
    analysis = run(zoo.write_model(tmp_path, model, tensors=tensors), all_norms=True)
    assert {n.layer.type for n in analysis.norm_layers if n.layer.name.block is not None} == {"RMSNorm"}
    (warning,) = analysis.warnings
    assert "6 norm layers are RMSNorm by their stored parameters, where this family has LayerNorm" in warning


def test_a_missing_norm_and_a_missing_embedding_are_warnings(tmp_path: Path) -> None:
    model = zoo.qwen2()
    gone = ("model.layers.1.input_layernorm.weight", "model.embed_tokens.weight")
    tensors = {k: t for k, t in model.tensors().items() if k not in gone}
    missing, count = run(zoo.write_model(tmp_path, model, tensors=tensors)).warnings
    assert "no token embedding" in missing
    assert count == "text: 6 norm layers, expected 7 of Qwen2.5 by config.json"


def test_one_dimensional_weights_without_a_norms_name_are_said(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors() | {"model.layers.0.mystery.weight": torch.ones(4)}
    (warning,) = run(zoo.write_model(tmp_path, model, tensors=tensors)).warnings
    assert "1 one-dimensional weights are not named as norms" in warning
    assert "mystery" in warning


def test_an_unknown_family_goes_by_the_general_rule(tmp_path: Path) -> None:
    shapes: zoo.Shapes = {
        "transformer.wte.weight": (20, 8),
        "transformer.wpe.weight": (6, 8),
        "encoder.patch_embed.proj.weight": (8, 3, 2, 2),
        "embed_out.weight": (20, 8),
        "transformer.h.0.ln_1.weight": (8,),
        "transformer.h.0.ln_1.bias": (8,),
        "transformer.h.1.ln_1.weight": (8,),
        "transformer.ln_f.weight": (8,),
        "stem_bn.weight": (8,),
        "stem_bn.bias": (8,),
        "stem_bn.running_mean": (8,),
    }
    analysis = run(zoo.write_model(tmp_path, zoo.Model({"model_type": "gpt9"}, shapes, torch.float32)))
    report = analysis.to_json()
    assert report["model_type"] == "unknown"
    assert {k: e["kind"] for k, e in report["embedding_layers"].items()} == {
        "transformer.wte.weight": "token",
        "transformer.wpe.weight": "position",
        "encoder.patch_embed.proj.weight": "patch",
    }
    assert {k: e["type"] for k, e in report["norm_layers"].items()} == {
        "transformer.h.0.ln_1": "LayerNorm",
        "transformer.ln_f": "RMSNorm",
        "stem_bn": "BatchNorm",
    }
    assert len(analysis.norm_layers) == 4
    assert analysis.warnings[0].startswith("unknown family (model_type gpt9)")


KINDS = {
    "embeddings.word_embeddings.weight": "token",
    "tok_emb.weight": "token",
    "gpt_neox.embed_in.weight": "token",
    "embeddings.position_embeddings.weight": "position",
    "embeddings.token_type_embeddings.weight": "token type",
    "transformer.segment_embedding.weight": "token type",
    "shared.weight": "token",
    "embeddings.lang_embeddings.weight": "other",
    "model.prototype_embeddings.weight": "other",
    "embed_region.weight": "other",
    "composer_embed.weight": "other",
    "visual.patch_embed.proj.weight": "patch",
    "embeddings.cls_token": "class token",
    "embeddings.register_tokens": "register",
    "model.storage_tokens": "register",
    "model.layers.1.mlp.gate.weight": "expert router",
    "model.layers.1.feed_forward.router.weight": "expert router",
    "model.layers.2.ffn.router.layer.weight": "expert router",
    "router.expert_embeddings.weight": "expert router",
}


def test_tables_of_an_unknown_family_have_their_kinds_and_only_tokens_are_words(tmp_path: Path) -> None:
    shapes = dict.fromkeys(KINDS, (3, 4)) | {"embeddings.cls_token": (1, 1, 4)}
    none = {"model.layers.1.mlp.experts.0.up_proj.weight": (3, 4), "model.layers.1.dense.gate.weight": (3, 4)}
    none |= {"embeddings_project.weight": (3, 4), "encoder.embedding_hidden_mapping_in.weight": (3, 4)}
    none |= {"lm_head.weight": (3, 4), "embed_out.weight": (3, 4), "model.router.norm.weight": (4,)}
    folder = zoo.write_model(tmp_path, zoo.Model({"model_type": "novel"}, shapes | none, torch.float32))
    write_tokenizer(folder, 3)
    analysis = run(folder)
    entries = analysis.to_json()["embedding_layers"]
    assert {name: entry["kind"] for name, entry in entries.items()} == KINDS
    for entry in entries.values():
        assert ("token" in entry["largest"][0], "padding_rows" in entry) == (entry["kind"] == "token",) * 2
    assert [e.layer.kind for e in analysis.embedding_layers][:2] == ["token", "token"]  # words first


def test_an_adapter_that_is_not_merged_is_said_and_a_name_that_two_tensors_share_refused(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors()
    renamed = {
        (f"base_model.model.{k.replace('q_proj', 'q_proj.base_layer')}" if "q_proj" in k else k): t
        for k, t in tensors.items()
    }
    renamed |= {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 24)}
    (warning,) = run(zoo.write_model(tmp_path / "dump", model, tensors=renamed)).warnings
    assert warning.startswith("holds an adapter that is not merged, such as base_model.model.model.layers.0")
    twice = tensors | {"module.model.norm.weight": torch.ones(24)}
    message = refusal(run, zoo.write_model(tmp_path / "twice", model, tensors=twice))
    assert message.startswith("model.norm.weight and module.model.norm.weight: two tensors for one weight")


def test_an_embedding_in_fp8_is_read_by_its_scale(tmp_path: Path) -> None:
    """As transformers stores one: a scale for the whole table. Its codes alone would have other norms."""
    model = zoo.qwen2()
    tensors = model.tensors()
    table = tensors["model.embed_tokens.weight"].float()
    scale = table.abs().max().reshape(1) / 448
    codes = (table / scale).to(torch.float8_e4m3fn)
    quantised = tensors | {"model.embed_tokens.weight": codes, "model.embed_tokens.weight_scale": scale}
    model.config["quantization_config"] = {"quant_method": "fp8"}
    found = run(zoo.write_model(tmp_path, model, tensors=quantised))
    norms = np.linalg.norm(numpy_of(codes.float() * scale), axis=1)
    assert found.embedding_layers[0].vectors.norms.numpy() == pytest.approx(norms, rel=TOLERANCE)
    assert not found.warnings


def test_quantised_tensors_are_refused_one_by_one(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(24, 20, dtype=torch.uint8)
    tensors["model.layers.1.mlp.up_proj.weight.absmax"] = torch.ones(4)
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(24, dtype=torch.int8)
    model.config["quantization_config"] = {"quant_method": "bitsandbytes"}
    analysis = run(zoo.write_model(tmp_path, model, tensors=tensors), all_norms=True)
    assert len(analysis.norm_layers) == 6
    assert len(analysis.embedding_layers) == 1
    (warning,) = analysis.warnings
    assert "model.layers.2.input_layernorm.weight: quantised (bitsandbytes, stored as I8)" in warning


@pytest.mark.parametrize(
    ("key", "bad", "said"),
    [
        ("model.embed_tokens.weight", float("nan"), "1 of 64 vectors hold NaN or infinity, the first is vector 2"),
        ("model.embed_tokens.weight", float("-inf"), "1 of 64 vectors hold NaN or infinity, the first is vector 2"),
        ("model.norm.weight", float("inf"), "0 NaN and 1 infinite of 24"),
    ],
)
def test_not_a_number_is_refused_by_the_tensors_name(key: str, bad: float, said: str, tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors()
    tensors[key].view(-1)[-1 if key == "model.norm.weight" else 2 * 24 + 5] = bad
    message = refusal(run, zoo.write_model(tmp_path, model, tensors=tensors))
    assert message.startswith(key)
    assert said in message


def test_a_weight_that_is_not_looked_at_may_be_anything(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors()
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))
    assert run(zoo.write_model(tmp_path, model, tensors=tensors)).warnings == ()


@pytest.mark.parametrize("name", ["qwen2", "moonvit", "molmo"])
@pytest.mark.parametrize("entries", [1, 100, 1000])
def test_small_chunks_give_what_one_chunk_gives(
    name: str, entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = zoo.write_model(tmp_path, zoo.TINY[name]())
    whole = run(folder)
    monkeypatch.setattr(reading, "CHUNK_ENTRIES", entries)
    for a, b in zip(run(folder).embedding_layers, whole.embedding_layers, strict=True):
        torch.testing.assert_close(a.vectors.norms, b.vectors.norms, rtol=TOLERANCE, atol=0)
        assert a.vectors.weights.std == pytest.approx(b.vectors.weights.std, rel=TOLERANCE)
        assert a.vectors.weights.mean == pytest.approx(b.vectors.weights.mean, rel=1e-9, abs=1e-15)


def write_tokenizer(folder: Path, num_tokens: int) -> None:
    vocab = {f"t{i}": i for i in range(num_tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))


def test_padding_rows_are_counted_apart_and_extremes_named_by_their_tokens(tmp_path: Path) -> None:
    model = zoo.qwen2()
    tensors = model.tensors()
    embedding = tensors["model.embed_tokens.weight"]
    embedding[60:] = 0
    embedding[7] *= 100
    embedding[3] *= 0.001
    folder = zoo.write_model(tmp_path, model, tensors=tensors)
    write_tokenizer(folder, 60)
    entry = run(folder).to_json()["embedding_layers"]["model.embed_tokens.weight"]
    norms = np.linalg.norm(numpy_of(embedding), axis=1)
    assert entry["padding_rows"] == 4
    assert entry["norm_min"] == entry["padding"]["norm_max"] == 0
    assert entry["tokens"]["norm_mean"] == pytest.approx(norms[:60].mean(), rel=TOLERANCE)
    order = np.argsort(norms[:60])
    assert [v["id"] for v in entry["smallest"]] == order[:10].tolist()
    assert [v["id"] for v in entry["largest"]] == order[::-1][:10].tolist()
    assert (entry["smallest"][0]["token"], entry["largest"][0]["token"]) == ("t3", "t7")
    assert entry["largest"][0]["norm"] == pytest.approx(norms[7], rel=TOLERANCE)


def test_ids_of_the_new_table_of_molmo_name_their_tokens(tmp_path: Path) -> None:
    folder = zoo.write_model(tmp_path, zoo.molmo())
    write_tokenizer(folder, 70)
    layers = run(folder).to_json()["embedding_layers"]
    assert layers["model.transformer.wte.embedding"]["padding_rows"] == 0
    new = layers["model.transformer.wte.new_embedding"]
    assert new["padding_rows"] == 2
    assert {v["token"] for v in new["largest"]} == {f"t{i}" for i in range(64, 70)}
    assert "token" not in layers["model.vision_backbone.image_vit.positional_embedding"]["largest"][0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the tensors of which data was read."""
    names: list[str] = []
    read, read_rows = Checkpoint.read, Checkpoint.read_rows

    def noted_rows(self: Checkpoint, name: str, start: int, stop: int) -> Tensor:
        names.append(name)
        return read_rows(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "read", lambda self, name: (names.append(name), read(self, name))[1])
    monkeypatch.setattr(Checkpoint, "read_rows", noted_rows)
    return names


@pytest.mark.parametrize("name", zoo.TINY)
def test_only_embeddings_and_norms_are_read(name: str, tmp_path: Path, asked: list[str]) -> None:
    analysis = run(zoo.write_model(tmp_path, zoo.TINY[name]()))
    norms = {n.layer.key for n in analysis.norm_layers} | {
        n.layer.bias_key for n in analysis.norm_layers if n.layer.bias_key
    }
    assert set(asked) == {e.layer.key for e in analysis.embedding_layers} | norms
    with open_source(tmp_path) as checkpoint:
        assert analysis.bytes_read == sum(checkpoint.info(key).nbytes for key in set(asked))


@pytest.mark.parametrize("name", ["qwen2", "siglip", "molmo", "novel"])
def test_an_analysis_is_saved_and_loads_again(name: str, tmp_path: Path) -> None:
    model = zoo.TINY[name]() if name in zoo.TINY else zoo.qwen2()
    model.config["model_type"] = name
    folder = zoo.write_model(tmp_path / "model", model)
    if name == "molmo":
        write_tokenizer(folder, 70)
    found = run(folder)
    found.save(tmp_path / "saved")
    loaded = Analysis.load(tmp_path / "saved")
    assert loaded.to_json() == found.to_json()
    assert loaded.norm_layers == found.norm_layers
    same = {f.name for f in fields(Analysis)} - {"embedding_layers"}
    assert all(getattr(loaded, field) == getattr(found, field) for field in same)
    for a, b in zip(loaded.embedding_layers, found.embedding_layers, strict=True):
        assert torch.equal(a.vectors.norms, b.vectors.norms)
        assert replace(a, vectors=b.vectors) == b
    assert (
        loaded.plot("embedding_norms").get_size_inches().tolist()
        == found.plot("embedding_norms").get_size_inches().tolist()
    )
    before = {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()}
    loaded.save(tmp_path / "saved")
    assert {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()} == before


def test_what_is_no_saved_analysis_is_one_line(tmp_path: Path) -> None:
    assert "analysis.json: no analysis here" in refusal(Analysis.load, tmp_path)
    found = run(zoo.write_model(tmp_path / "model", zoo.qwen2()))
    found.save(tmp_path / "saved")
    (tmp_path / "saved" / "vectors.safetensors").unlink()
    assert "vectors.safetensors" in refusal(Analysis.load, tmp_path / "saved")
    (tmp_path / "saved" / "analysis.json").write_text('{"model_name": 3}')
    assert "analysis.json: not an analysis" in refusal(Analysis.load, tmp_path / "saved")
    assert "holds 'config.json'" in refusal(found.save, tmp_path / "model")
