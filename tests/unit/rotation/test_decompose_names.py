"""Weights whose names are no file names, and fused experts, which are a matrix each."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal
from tests.unit.rotation.test_earlier import refused, run
from torch import Tensor

from subspacelab.checkpoints import canonical_name, open_checkpoint, tensor_digest
from subspacelab.rotation.factors import Decomposition, file_names, read_decomposition

AWKWARD = [
    *(
        "model.a/../../b.weight",
        "/etc/x",
        "..",
        ".hidden",
        "",
        "back\\slash",
        "nul\0",
        "bell\x07\x1b[31m",
        "line\nbreak",
    ),
    *(
        "gewicht.ä",
        "重み",
        "w" * 300,
        "ü" * 150,
        "A.weight",
        "a.weight",
        "a:b*c?",
        "tail ",
        "-rf",
        "x" * 200,
        "x" * 201,
    ),
]


def decomposed(tmp_path: Path, tensors: dict[str, Tensor], **settings: object) -> Decomposition:
    return run(write_tiny_qwen_vl(tmp_path / "m", tensors=tensors, layout="legacy"), tmp_path / "out", **settings)


@pytest.fixture
def any_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tiny.layout_name", lambda name, layout: name)


@pytest.mark.usefixtures("any_names")
def test_any_name_can_be_decomposed_and_is_known_again(tmp_path: Path) -> None:
    tensors = {name: torch.full((2, 2), float(i + 1)) for i, name in enumerate(AWKWARD)}
    result = decomposed(tmp_path, tensors)
    assert {record.weight for record in result.weights.values()} == set(tensors)
    for i, name in enumerate(AWKWARD):
        assert result.spectrum(canonical_name(name))[0] == pytest.approx(2 * (i + 1), rel=1e-6)  # float32 factors
    files = [path.name for path in result.folder.iterdir()]
    assert len({file.lower() for file in files}) == len(AWKWARD) + 1
    assert max(len(file.encode()) for file in files) + 42 <= 255  # 42: what the name of a partial file adds
    assert {path.name for path in tmp_path.iterdir()} == {"m", "out"}
    again = run(tmp_path / "m", tmp_path / "out")
    assert again == result


def test_ordinary_names_are_their_files_names_and_the_case_of_others_counts() -> None:
    ordinary = ["model.layers.0.self_attn.q_proj.weight", "h.0.attn.c_attn.weight", "Model.experts.w1[12]", "a b-c+d=e"]
    assert file_names(ordinary) == {name: f"{name}.safetensors" for name in ordinary}
    assert file_names(["a.Q", "a.q", "b"])["b"] == "b.safetensors"
    assert len({file.lower() for file in file_names(["a.Q", "a.q"]).values()}) == 2


@pytest.mark.usefixtures("any_names")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for tensor in (torch.eye(2), torch.ones(2)):
        torch.save({"\ud800": tensor, "w": torch.eye(3)}, folder / "pytorch_model.bin")
        assert r"weight '\ud800': its name is no Unicode text" in refused(tmp_path / "out", folder)


@pytest.mark.usefixtures("any_names")
def test_an_adapter_that_is_not_merged_is_told_and_can_be_left_out(tmp_path: Path) -> None:
    name = "base_model.model.layers.0.mlp.up_proj"
    parts = ("base_layer", "lora_A.default", "lora_B.default")
    folder = write_tiny_qwen_vl(tmp_path / "m", tensors={f"{name}.{part}.weight": torch.eye(3) for part in parts})
    assert "holds an adapter that is not merged" in refused(tmp_path / "out", folder)
    assert "holds an adapter that is not merged" in refused(tmp_path / "out", folder, rank=9)
    found = run(folder, tmp_path / "out", exclude="lora_").weights
    assert any(weight.endswith("layers.0.mlp.up_proj.weight") for weight in found)
    assert not any("lora_" in weight for weight in found)


@pytest.mark.usefixtures("any_names")
def test_two_layouts_of_one_weight_are_refused_with_both(tmp_path: Path) -> None:
    pair = {"model.visual.x": torch.eye(2), "visual.x": torch.ones(2, 2)}
    said = refusal(lambda: decomposed(tmp_path, pair))
    assert "'model.visual.x' and 'visual.x' are both 'visual.x'" in said
    assert not (tmp_path / "out").exists()
    decomposed(tmp_path, pair, exclude="^visual")
    assert "are both 'visual.x'" in refused(tmp_path / "out", tmp_path / "m", include="^visual")


@pytest.mark.usefixtures("any_names")
@pytest.mark.parametrize(
    "key", ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.block_sparse_moe.input_linear.weight"]
)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_fused_experts_are_a_matrix_each(tmp_path: Path, key: str, format: str) -> None:
    stacked = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {key: stacked, f"{key}_bias": torch.ones(12, 4), "conv1d.weight": torch.randn(5, 2, 3)}
    folder = write_tiny_qwen_vl(tmp_path / "m", tensors=tensors, format=format)  # type: ignore[arg-type]
    result = run(folder, tmp_path / "out")
    assert set(result.weights) == {f"{key}[{e}]" for e in range(12)} | {"conv1d.weight"}
    assert result.skipped == {f"{key}_bias": "a vector per expert"}
    assert result.weights["conv1d.weight"].matrix_shape == (5, 6)
    for e in (0, 10):
        record, factors = result.weights[f"{key}[{e}]"], result.read(f"{key}[{e}]")
        assert (record.matrix_shape, record.original_shape, record.expert) == ((4, 6), (12, 4, 6), e)
        assert (record.key, record.file) == (key, f"{key}[{e}].safetensors")
        assert record.source_digest == tensor_digest(stacked[e])
        product = (factors.U.double() * factors.S.double()) @ factors.Vh.double()
        assert torch.equal(product.bfloat16(), stacked[e])
    stacked[10] += 1
    write_tiny_qwen_vl(folder, tensors=tensors, format=format)  # type: ignore[arg-type]
    before = {path.name: path.stat().st_mtime_ns for path in result.folder.glob("*.safetensors")}
    run(folder, tmp_path / "out")
    after = {path.name: path.stat().st_mtime_ns for path in result.folder.glob("*.safetensors")}
    assert [name for name in after if after[name] != before[name]] == [f"{key}[10].safetensors"]


@pytest.mark.usefixtures("any_names")
def test_experts_under_each_other_are_a_matrix_each_if_the_config_tells_how_many(tmp_path: Path) -> None:
    key = "transformer.blocks.0.ffn.experts.mlp.w1"
    stacked = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    folder = write_tiny_qwen_vl(tmp_path / "m", tensors={key: stacked.reshape(12, 6)})
    config = json.loads((folder / "config.json").read_text())
    for said in (config, config | {"ffn_config": {"moe_num_experts": 5}}):
        (folder / "config.json").write_text(json.dumps(said))
        assert f"{key}: all experts of a layer in one matrix, and config.json has no" in refused(
            tmp_path / "out", folder
        )
    (folder / "config.json").write_text(json.dumps(config | {"ffn_config": {"moe_num_experts": 3}}))
    result = run(folder, tmp_path / "out")
    assert set(result.weights) == {f"{key}[{e}]" for e in range(3)}
    for e in range(3):
        factors = result.read(f"{key}[{e}]")
        assert torch.allclose((factors.U * factors.S) @ factors.Vh, stacked[e], atol=1e-5)  # float32 of entries near 1
    before = {path: path.stat().st_mtime_ns for path in result.folder.iterdir()}
    run(folder, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in result.folder.iterdir()} == before


@pytest.mark.usefixtures("any_names")
def test_experts_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_qwen_vl(tmp_path / "m", tensors={"experts.w": torch.randn(3, 4, 4), "w": torch.eye(4)})
    from subspacelab.checkpoints import Checkpoint

    whole, read = [], Checkpoint.read
    monkeypatch.setattr(Checkpoint, "read", lambda c, name: (whole.append(name), read(c, name))[1])
    run(folder, tmp_path / "out")
    assert set(whole) == {"w"}


@pytest.mark.usefixtures("any_names")
def test_a_rank_that_an_expert_does_not_have_and_a_name_that_is_taken(tmp_path: Path) -> None:
    tensors = {"experts.w": torch.randn(3, 4, 6)}
    assert "rank=5: weight 'experts.w' of shape 4x6" in refusal(lambda: decomposed(tmp_path, tensors, rank=5))
    taken = tensors | {"experts.w[1]": torch.eye(2)}
    assert "are both 'experts.w[1]'" in refusal(lambda: decomposed(tmp_path, taken))
    with open_checkpoint(write_tiny_qwen_vl(tmp_path / "m", tensors={"experts.w": torch.zeros(0, 4, 6)})) as c:
        assert c.names == ["experts.w"]
    assert "no weight is left" in refusal(lambda: run(tmp_path / "m", tmp_path / "out"))


@pytest.mark.usefixtures("any_names")
@pytest.mark.parametrize(
    "entry",
    [
        {"original_shape": 4},
        {"original_shape": ["x"]},
        {"matrix_shape": [2]},
        {"matrix_shape": [2, 2, 2]},
        {"rank": 0},
        {"rank": 3},
        {"rank": "many"},
        {"storage_dtype": "F8"},
        {"method": "magic"},
        {"weight": 3},
        {"file": "../../w.safetensors"},
        {"file": "other.safetensors"},
        {"factor_digests": "ab"},
    ],
)
def test_an_index_of_other_types_is_one_line(tmp_path: Path, entry: dict[str, object]) -> None:
    path = decomposed(tmp_path, {"w": torch.eye(2)}).folder / "index.json"
    index = json.loads(path.read_text())
    index["weights"]["w"] |= entry
    path.write_text(json.dumps(index))
    said = refusal(read_decomposition, path.parent)
    assert "index.json: not the index of a decomposed checkpoint (weights.w" in said
    assert "index.json" in refused(tmp_path / "out", tmp_path / "m")
