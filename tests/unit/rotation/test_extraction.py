"""An extracted adapter: what PEFT makes of it, and the norms of an independent extraction."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.unit.rotation.tuned import save_pair
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from subspacelab.checkpoints import open_checkpoint
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import read_json
from subspacelab.rotation.auditing import audit
from subspacelab.rotation.commands import extract as command
from subspacelab.rotation.extraction import extract

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")
KINDS = ("llama", "gpt2", "qwen_vl")


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    return request.param, *save_pair(tmp_path_factory.mktemp(request.param), request.param)


def load(kind: str, folder: Path) -> Any:
    cls = AutoModelForImageTextToText if kind == "qwen_vl" else AutoModelForCausalLM
    return cls.from_pretrained(folder, dtype=torch.float32)


def state(folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.names}


def test_peft_makes_the_tuned_model_of_base_and_full_adapter(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, base, tuned = pair
    found = extract(base, tuned, tmp_path / "adapter", rank=1000)
    merged = PeftModel.from_pretrained(load(kind, base), tmp_path / "adapter").merge_and_unload()
    wanted, start = load(kind, tuned).state_dict(), load(kind, base).state_dict()
    moved = {name for name, t in merged.state_dict().items() if not torch.equal(t, start[name])}
    assert len(moved) == len(found.layers)
    for name in moved:
        error = (merged.state_dict()[name] - wanted[name]).norm()
        assert error < 1e-5 * (wanted[name] - start[name]).norm() + 2**-23 * wanted[name].norm()
    linears = {n for n, m in load(kind, tuned).named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    tied = set() if kind == "llama" else {"lm_head"}
    assert {name.removesuffix(".weight") for name in moved} == linears - tied
    assert found.metrics["energy_kept"] == pytest.approx(1)
    rest = sum((wanted[n] - start[n]).norm().item() ** 2 for n in wanted if n not in moved and n != "lm_head.weight")
    total = rest + float((found.layers["update_norm"] ** 2).sum())
    assert found.metrics["share_left_out"] == pytest.approx(rest / total, rel=1e-4)
    assert found.left_out["share"].sum() == pytest.approx(rest / total, rel=1e-4)


def test_ranks_by_energy_are_those_of_an_independent_svd(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    """mergekit's idea: SVD of each difference, truncated; here by LAPACK in float64, layer by layer."""
    _, base, tuned = pair
    found = extract(base, tuned, tmp_path / "adapter", energy=0.5)
    before, after = state(base), state(tuned)
    near = {key.removeprefix("model.").removeprefix("language_model."): key for key in before}
    for row in found.layers.to_dict("records"):
        key = next(full for short, full in near.items() if str(row["weight"]).endswith(short))
        squares = torch.linalg.svdvals(after[key].double() - before[key].double()).square()
        share = squares.cumsum(0) / squares.sum()
        rank = int((share < 0.5).sum()) + 1
        assert row["rank"] == rank
        assert row["energy_kept"] == pytest.approx(share[rank - 1].item(), rel=1e-5)
        assert row["update_norm"] == pytest.approx(squares.sum().sqrt().item(), rel=1e-5)
    read = audit(tmp_path / "adapter", base, null_draws=0).layers.set_index("weight")
    for row in found.layers.to_dict("records"):
        norm = row["update_norm"] * row["energy_kept"] ** 0.5
        assert read.loc[row["weight"], "norm"] == pytest.approx(norm, rel=1e-5)
        assert read.loc[row["weight"], "rank"] == row["rank"]
    config = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert set(config["rank_pattern"].values()) < set(found.layers["rank"]) | {0}
    assert config["alpha_pattern"] == config["rank_pattern"]


def test_what_is_left_out_is_said_by_name_and_share(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, base, tuned = pair
    found = extract(base, tuned, tmp_path / "adapter", rank=2, exclude="layers.0|h.0|blocks.0")
    reasons = dict(zip(found.left_out["weight"], found.left_out["reason"], strict=True))
    embedding = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}.get(kind)
    assert reasons[embedding or "visual.patch_embed.proj.weight"] == "no linear layer that PEFT adapts"
    assert any(reason.startswith("left out by exclude=") for reason in reasons.values())
    assert any(reason == "a vector" for reason in reasons.values())
    assert found.left_out["share"].is_monotonic_decreasing
    assert f"{len(found.left_out)} other tensors" in found.summary
    assert (found.layers["rank"] == 2).all()


def test_two_runs_give_the_same_bytes_and_no_path_of_tuned(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, base, tuned = pair
    for name in ("a", "b"):
        extract(base, tuned, tmp_path / name, energy=0.9)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tuned).encode() not in path.read_bytes()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    out = tmp_path / "out"
    for given, said in (
        ({}, "give one of the two"),
        ({"rank": 1, "energy": 0.5}, "give one of the two"),
        ({"rank": 0}, "rank from 1 on"),
        ({"energy": float("nan")}, "above 0 and at most 1"),
        ({"energy": 1.5}, "above 0 and at most 1"),
    ):
        with pytest.raises(SettingError, match=said):
            extract(base, tuned, out, **given)
    with pytest.raises(CheckpointError, match="no linear layer differs"):
        extract(base, base, out, rank=1)
    with pytest.raises(CheckpointError, match=r"state_dict: no config.json that names"):
        extract(base, state(tuned), out, rank=1)
    tensors = load_file(tuned / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {key: tensors[key] * float("nan")}, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{key}.*NaN"):
        extract(base, tuned, out, rank=1)
    save_file({key: tensors[key][:3]}, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="share no matrix of one shape"):
        extract(base, tuned, out, rank=1)
    assert not out.exists()
    shutil.copytree(base, out)
    with pytest.raises(ValueError, match=r"holds 'config.json', no part of this adapter"):
        extract(base, tuned, out, rank=1)


def test_the_command_tells_ranks_and_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = save_pair(tmp_path, "llama")
    settings: dict[str, Any] = {"rank": None, "energy": 0.8, "include": None, "exclude": None, "device": "cpu"}
    command(base=str(base), tuned=str(tuned), output_dir=tmp_path / "out", **settings)
    printed = " ".join(capsys.readouterr().out.split())
    assert "left out: model.embed_tokens.weight" in printed
    assert "of the energy of their updates" in printed
    with pytest.raises(ValueError, match="is, or lies within, the input"):
        command(base=str(base), tuned=str(tuned), output_dir=base / "out", **settings)
