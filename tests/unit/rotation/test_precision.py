"""Weights stored in FP8, and factors stored in half precision."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.checkpoints.refusal import refusal
from torch import Tensor
from typer.testing import CliRunner

from subspacelab.checkpoints import open_source
from subspacelab.rotation.commands import app
from subspacelab.rotation.comparison import compare
from subspacelab.rotation.decomposition import decompose
from subspacelab.rotation.factors import FORMATS

Q, UP, EXPERTS = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.experts.down_proj",
)
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def quantised(w: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """Codes and scale of a matrix by blocks, the largest entry of each at 448, as DeepSeek-V3 has them."""
    rows, columns = (-(-size // block) for size in w.shape)
    scale = torch.empty(rows, columns)
    codes = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            part = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scale[i, j] = w[part].abs().max() / 448
            codes[part] = (w[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return codes, scale


def write(folder: Path, weights: dict[str, Tensor], *, fp8: bool) -> dict[str, Tensor]:
    """A checkpoint of a few weights, in FP8 or as bf16; what it stands for."""
    folder.mkdir()
    stored, means = {EMBEDDING: torch.ones(6, 8).bfloat16(), NORM: torch.ones(8).bfloat16()}, {}
    for name, w in weights.items():
        codes, scale = quantised(w) if w.ndim == 2 else (w.to(torch.float8_e4m3fn), torch.rand(len(w)) + 0.5)
        stored |= {name: codes, f"{name}_scale_inv": scale} if fp8 else {name: w.bfloat16()}
        each = scale.repeat_interleave(128, 0).repeat_interleave(128, 1) if w.ndim == 2 else scale[:, None, None]
        means[name] = codes.float() * (each[: w.shape[0], : w.shape[1]] if w.ndim == 2 else each) if fp8 else w
    save_file(stored, folder / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 8, "quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    return means


def some() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {Q: (200, 130), UP: (12, 8), EXPERTS: (2, 8, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_what_is_decomposed_is_what_the_codes_stand_for(tmp_path: Path) -> None:
    means = write(tmp_path / "m", some(), fp8=True)
    result = decompose(tmp_path / "m", output_dir=tmp_path / "svd", device="cpu")
    assert set(result.weights) == {Q, UP, f"{EXPERTS}[0]", f"{EXPERTS}[1]", EMBEDDING}
    assert result.skipped == {
        NORM: "vector",
        **dict.fromkeys((f"{Q}_scale_inv", f"{UP}_scale_inv"), "a scale"),
        f"{EXPERTS}_scale_inv": "vector",
    }
    for name, record in result.weights.items():
        w = means.get(name, torch.ones(6, 8)) if record.expert is None else means[EXPERTS][record.expert]
        svd = result.read(name)
        error = (svd.U.double() * svd.S.double()) @ svd.Vh.double() - w.double()
        assert error.norm() < 2e-7 * w.norm()
        assert record.storage_dtype == ("BF16" if name == EMBEDDING else "F8_E4M3")
    assert result.notes == (
        "4 weights are stored in FP8 (F8_E4M3) and read as code times scale: an entry is known to half a step, 3.1 to "
        "6.2 % of itself",
    )
    before = {path.name: path.stat().st_mtime_ns for path in result.folder.glob("*.safetensors")}
    decompose(tmp_path / "m", include="q_proj", output_dir=tmp_path / "svd", device="cpu")
    assert {path.name: path.stat().st_mtime_ns for path in result.folder.glob("*.safetensors")} == before


def test_an_fp8_release_is_compared_with_the_checkpoint_that_it_was_made_of(tmp_path: Path) -> None:
    weights = some()
    for name, fp8 in (("a", False), ("b", True)):
        write(tmp_path / name, weights, fp8=fp8)
    read = compare(tmp_path / "a", tmp_path / "b", null_draws=0, device="cpu", k=2).layers.set_index("weight")
    folders = [decompose(tmp_path / name, output_dir=tmp_path / "svd", device="cpu") for name in "ab"]
    factors = compare(*folders, null_draws=0, device="cpu", k=2).layers.set_index("weight")
    # Uniform within a step of 2^-3 to 2^-4: a deviation of 2.6 % of an entry.
    assert read.loc[Q, "update_norm"] == pytest.approx(0.0265, rel=0.1)
    assert read.loc[EMBEDDING, "update_norm"] == 0
    back = compare(tmp_path / "b", tmp_path / "a", null_draws=0, device="cpu", k=2)
    rows = back.layers.set_index("weight")
    assert rows.loc[Q, "floor_update_norm"] == pytest.approx(0.0265, rel=0.1)  # of FP8, not of bf16
    assert rows.loc[EMBEDDING, "floor_update_norm"] < 0.003
    assert back.notes[0].startswith("4 weights are stored in FP8")
    assert factors["update_norm"].to_numpy() == pytest.approx(read["update_norm"].to_numpy(), rel=1e-4)


def test_transformers_makes_the_same_weights_of_codes_and_scales(tmp_path: Path) -> None:
    """An independent reader, which knows whole blocks only."""
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    projections = [name for name in stored if "proj" in name]
    for name in projections:
        stored[name], stored[f"{name}_scale_inv"] = quantised(stored[name])
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    how = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    said = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": how}
    (tmp_path / "config.json").write_text(json.dumps(said))
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.FineGrainedFP8Config(dequantize=True), dtype=torch.float32
    ).state_dict()
    with open_source(tmp_path) as checkpoint:
        assert len(projections) == 7
        for name in projections:
            assert torch.equal(checkpoint.read(name), theirs[name])


@pytest.mark.parametrize(
    ("method", "said"), [("gptq", "gptq"), ("awq", "awq"), ("mxfp4", "mxfp4"), ("bitsandbytes", "b")]
)
def test_other_formats_are_refused_by_their_name(tmp_path: Path, method: str, said: str) -> None:
    write(tmp_path / "m", some(), fp8=False)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    codes = {"gptq": "qweight", "awq": "qweight", "mxfp4": "weight_blocks", "bitsandbytes": "weight"}[method]
    stored[f"model.layers.0.mlp.gate_proj.{codes}"] = torch.ones(8, 8, dtype=torch.uint8)
    save_file(stored, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"]["quant_method"] = method
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    message = refusal(lambda: decompose(tmp_path / "m", output_dir=tmp_path / "out", device="cpu"))
    assert f"gate_proj.{codes}: quantised ({said}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
def test_half_factors_take_half_and_the_index_says_their_error(tmp_path: Path, format: str) -> None:
    w = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)) * 1e5  # S beyond float16's 65504
    folder = decompose({Q: w}, output_dir=tmp_path / format, format=format, device="cpu").folder
    exact = decompose({Q: w}, output_dir=tmp_path / "float32", device="cpu").folder
    stored, whole = (load_file(f / f"{Q}.safetensors") for f in (folder, exact))
    assert {key: tensor.dtype for key, tensor in stored.items()} == {
        "U": FORMATS[format],
        "S": torch.float32,
        "Vh": FORMATS[format],
    }
    assert torch.equal(stored["S"], whole["S"])
    assert torch.equal(stored["U"], whole["U"].to(FORMATS[format]))
    again = decompose({Q: w}, output_dir=tmp_path / format, format=format, device="cpu")
    record, svd = again.weights[Q], again.read(Q)
    assert svd.U.dtype == svd.Vh.dtype == torch.float32
    error = ((svd.U.double() * svd.S.double()) @ svd.Vh.double() - w.double()).norm() / w.double().norm()
    assert record.relative_reconstruction_error == pytest.approx(error.item(), rel=1e-6)
    assert 2**-13 < error < 2**-7
    off = (svd.U.double().T @ svd.U.double() - torch.eye(64)).abs().max().item()
    assert record.orthogonality_error >= off * (1 - 1e-6)
    assert not record.is_full
    assert again.notes[0].startswith(f"1 weights have factors in {format} (reconstruction error up to {error:.1e})")


def test_what_half_factors_cannot_tell_is_empty(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a = {Q: torch.randn(96, 64, generator=generator)}
    b = {Q: a[Q] + 0.05 * torch.randn(96, 64, generator=generator)}
    exact, half = (
        compare(*(decompose(c, device="cpu", format=f) for c in (a, b)), null_draws=0, device="cpu", k=4).layers.iloc[0]
        for f in ("float32", "float16")
    )
    assert all(math.isnan(half[c]) for c in ("update_norm", "unchanged", "principal_energy", "floor_angle_mean"))
    assert half["nss"] == pytest.approx(exact["nss"], rel=1e-6)
    assert half["angle_mean"] == pytest.approx(exact["angle_mean"], abs=0.05)  # 2^-12 rad and less


def test_a_folder_has_one_format_and_float32_is_not_mentioned(tmp_path: Path) -> None:
    found = decompose({Q: torch.eye(3)}, output_dir=tmp_path, device="cpu")
    assert "factor_dtype" not in (found.folder / "index.json").read_text()
    said = refusal(lambda: decompose({Q: torch.eye(3)}, output_dir=tmp_path, device="cpu", format="float16"))
    assert "holds a result of format='float32', this one is of format='float16'" in said
    assert "format='int8': allowed are float32, float16, bfloat16" in refusal(
        lambda: decompose({Q: torch.eye(3)}, device="cpu", format="int8")
    )


def test_several_checkpoints_in_one_call(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, some(), fp8=name == "b")
    several = [part for name in "ab" for part in ("--model-id", str(tmp_path / name))]
    command = ["decompose", *several, "--output-dir", str(tmp_path / "svd"), "--format", "bfloat16"]
    done = CliRunner().invoke(app, [*command, "--no-track", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "svd").iterdir()} == {"a", "b"}
    assert "4 weights are stored in FP8" in " ".join(done.output.split())
    twice = CliRunner().invoke(app, [*command, "--model-id", str(tmp_path / "a"), "--no-track"])
    assert "two models of one name (a, b, a)" in str(twice.exception)
