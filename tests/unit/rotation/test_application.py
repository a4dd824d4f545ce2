"""A base plus a part of an update, as a folder: exact at the ends, of the planted parts between, beside its control."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.rotation.tuned import save_pair
from torch import Tensor
from transformers import AutoModelForCausalLM

from subspacelab.checkpoints import open_checkpoint
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import read_json
from subspacelab.rotation.application import RECORD, apply
from subspacelab.rotation.commands import apply as command

KEY = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("llama"), "llama")


def state(folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.names}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("qwen_vl", torch.float32), ("gpt2", torch.bfloat16)]
)
def test_the_ends_are_the_checkpoints_to_the_last_bit(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    base, tuned = save_pair(tmp_path, kind, dtype=dtype)
    for scale, wanted in ((1.0, tuned), (0.0, base)):
        apply(base, tuned, tmp_path / f"{scale}", scale=scale)
        found = state(tmp_path / f"{scale}")
        assert all(torch.equal(found[name], t) for name, t in state(wanted).items())
    names = {path.name for path in tuned.iterdir() if not path.name.startswith("model")}
    assert names <= {path.name for path in (tmp_path / "1.0").iterdir()}
    assert read_json(tmp_path / "1.0" / "config.json") == read_json(tuned / "config.json")


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_leading_and_trailing_are_those_of_lapack(pair: tuple[Path, Path], tmp_path: Path, rank: int) -> None:
    before, after = map(state, pair)
    tables = {part: apply(*pair, tmp_path / part, rank=rank, part=part) for part in ("leading", "trailing")}  # type: ignore[arg-type]
    for name, w in before.items():
        d = after[name].double() - w.double()
        for part in tables:
            wanted = d
            if d.ndim > 1:
                u, s, vh = torch.linalg.svd(d, full_matrices=False)
                kept = slice(rank) if part == "leading" else slice(rank, None)
                wanted = (u[:, kept] * s[kept]) @ vh[kept]
            found = state(tmp_path / part)[name].double() - w
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * w.abs().max().item() + 1e-8)
    shares = [tables[part].layers.set_index("weight").loc[KEY, "relative_norm"] ** 2 for part in tables]
    assert sum(shares) == pytest.approx(1, rel=1e-5)


def test_rotation_keeps_the_singular_values_of_the_base_and_spectrum_those_of_tuned(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for part, kept in (("rotation", pair[0]), ("spectrum", pair[1])):
        apply(*pair, tmp_path / part, part=part)  # type: ignore[arg-type]
        found, wanted = state(tmp_path / part)[KEY], state(kept)[KEY]
        values = torch.linalg.svdvals(wanted.double())
        torch.testing.assert_close(torch.linalg.svdvals(found.double()), values, rtol=1e-5, atol=1e-6)


def test_the_control_has_the_norms_of_the_part_and_shares_its_vectors(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = state(pair[0])
    made = {"part": {}, "one": {"random": 1}, "again": {"random": 1}, "other": {"random": 2}}
    for name, settings in made.items():
        apply(*pair, tmp_path / name, rank=3, scale=0.5, **settings)
    part, one, again, other = (state(tmp_path / name) for name in made)
    for name, w in base.items():
        assert torch.equal(one[name], again[name])
        if w.ndim > 1:
            sizes = [(t[name].double() - w).norm().item() for t in (part, one, other)]
            assert sizes[1:] == pytest.approx([sizes[0]] * 2, rel=1e-4)
            cosine = ((one[name] - w) * (other[name] - w)).sum() / (one[name] - w).norm() ** 2
            assert abs(cosine) < 6 / math.sqrt(w.numel())
        else:
            assert torch.equal(one[name], part[name])
    assert read_json(tmp_path / "one" / RECORD)["random"] == 1


def test_what_comes_out_is_a_model_and_lies_on_the_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    apply(*pair, tmp_path / "half", scale=0.5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    ends = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict() for folder in pair]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, (ends[0][name] + ends[1][name]) / 2, rtol=1e-5, atol=1e-7)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()


def test_fused_experts_are_matrices_of_their_own_and_indices_are_copied(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    base = {"mlp.experts.gate_up_proj": torch.randn(3, 6, 8, generator=g), "ids": torch.arange(4)}
    tuned = {
        "mlp.experts.gate_up_proj": base["mlp.experts.gate_up_proj"] + torch.randn(3, 6, 8, generator=g),
        "new": torch.ones(2),
    }
    found = apply(base, tuned | {"ids": torch.arange(4)}, tmp_path / "out", rank=1)
    assert len(found.layers) == 3
    delta = state(tmp_path / "out")["mlp.experts.gate_up_proj"] - base["mlp.experts.gate_up_proj"]
    assert [int(torch.linalg.matrix_rank(d, atol=1e-4)) for d in delta] == [1, 1, 1]
    assert torch.equal(state(tmp_path / "out")["ids"], torch.arange(4))
    assert any("new: not in the base" in note for note in found.notes)


def test_bad_input_is_one_line_and_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"part": "middle"}, "part='middle': allowed are leading, trailing, rotation, spectrum"),
        ({"part": "rotation", "rank": 3}, "leave rank out"),
        ({"part": "trailing"}, "give rank"),
        ({"rank": -1}, "rank=-1: 0 or more"),
        ({"scale": float("nan")}, "a finite number"),
        ({"scale": float("inf")}, "a finite number"),
    ]
    for given, said in bad:
        with pytest.raises(SettingError, match=said):
            apply(*pair, out, **given)
    with pytest.raises(CheckpointError, match="leads beyond the numbers of torch.float32; take a smaller one"):
        apply(*pair, out, scale=1e41)
    tensors = load_file(pair[1] / "model.safetensors")
    (tmp_path / "nan").mkdir()
    save_file(tensors | {KEY: tensors[KEY] * float("inf")}, tmp_path / "nan" / "model.safetensors")
    with pytest.raises(ValueError, match=f"{KEY}"):
        apply(pair[0], tmp_path / "nan", out)
    assert not list(tmp_path.glob("*out*"))
    with pytest.raises(ValueError, match="holds 'config.json', no part of this checkpoint"):
        apply(*pair, pair[0])


def test_the_command_tells_the_size_of_the_part(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"rank": 2, "part": "leading", "scale": 1.0, "random": None, "device": "cpu"}
    command(base=str(pair[0]), tuned=str(pair[1]), output_dir=tmp_path / "out", **settings)
    printed = " ".join(capsys.readouterr().out.split())
    assert "16 matrices; ||part|| / ||update|| is 0." in printed
    assert "norms, biases and other vectors have no parts" in printed
