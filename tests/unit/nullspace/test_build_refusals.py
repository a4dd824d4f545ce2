"""What an adapter is not built from, and what it is not written over."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.language_models import write_text, write_tiny_lm
from tests.unit.nullspace.builds import RANK, make, settings_of
from tests.unit.nullspace.trainings import contents

from subspacelab.checkpoints import resolve_reference
from subspacelab.core.files import read_json, write_json
from subspacelab.core.ownership import sole_writer
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.nullspace import starts
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.inits import METHODS

REFUSED = {
    "rank of the input": ({"rank": 25}, "rank 25 is larger than the input of model.layers.0.self_attn.q_proj, 24"),
    "rank of the output": (
        {"method": "lora_null_v1", "rank": 13},
        "rank 13 is larger than the output of model.layers.0.self_attn.k_proj, 12",
    ),
    "no such target": ({"targets": ["attn.query"]}, "'attn.query' matches none"),
    "few tokens": ({"calib_loader_size": 20}, "288 calibration tokens for .*down_proj, 40 dimensions wide: 320 are"),
    "unknown method": ({"method": "magic"}, "method='magic': allowed are lora_null_v2, "),
    "no text": ({"calib_dataset": "absent.txt"}, "absent.txt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_in_one_line(bases: Path, tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        make(bases, tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_weight_that_two_layers_share_is_never_moved_twice() -> None:
    linears = {"first": torch.nn.Linear(8, 8), "second": torch.nn.Linear(8, 8)}
    linears["second"].weight = linears["first"].weight
    starts.require_rank(2, linears, METHODS["lora_null_v2"])
    with pytest.raises(ValueError, match="first and second share one weight, which would be changed twice"):
        starts.require_rank(2, linears, METHODS["pissa"])


def test_a_folder_of_other_things_is_not_replaced(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', no part of an adapter, and would be replaced"):
        make(bases, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_adapter_is_replaced_by_itself_alone(bases: Path, tmp_path: Path) -> None:
    """The same base, method and settings; whatever else stands there is named, and stays to the last byte."""
    out, changed = tmp_path / "out", tmp_path / "other"
    make(bases, out, "lora", calib_dataset=None)
    before = contents(out)
    assert make(bases, out, "lora", calib_dataset=None, batch_size=2).meta == read_json(out / "nullspace.json")
    for changes, words in (
        ({"seed": 8}, "seed=7, this one is of seed=8"),
        ({"rank": 4}, "rank=5, this one is of rank=4"),
        ({"method": "pissa"}, "method='lora', this one is of method='pissa'"),
        ({"family": "qwen2"}, "base='.*llama', this one is of base='.*qwen2'"),
        ({"targets": ["q_proj"]}, r"targets=None, this one is of targets=\['q_proj'\]"),
        ({"calib_dataset": str(bases / "text.txt")}, "calib_dataset=None, this one is"),
    ):
        with pytest.raises(ValueError, match=words):
            make(bases, out, **({"method": "lora", "calib_dataset": None} | changes))
    write_tiny_lm(changed, seed=3)
    settings = settings_of(bases, calib_dataset=None)
    with pytest.raises(ValueError, match=r"base='.*llama', this one is of base='\.\./other'"):
        build_adapter(resolve_reference(str(changed)), out, method="lora", rank=RANK, seed=7, settings=settings)
    away, moved = tmp_path / "away", read_json(out / "nullspace.json")
    moved["base"] = {**moved["base"], "digest": "of what lay there before"}
    shutil.copytree(out, away)
    write_json(away / "nullspace.json", moved)
    with pytest.raises(ValueError, match="built on other weights that were called"):
        make(bases, away, "lora", calib_dataset=None)
    write_json(out / "nullspace.json", read_json(out / "nullspace.json") | {"trained": {"steps": 3}})
    with pytest.raises(ValueError, match=r"holds a trained adapter of lora, which would be lost"):
        make(bases, out, "lora", calib_dataset=None)
    assert contents(out) | {"nullspace.json": b""} == before | {"nullspace.json": b""}
    assert {p.name for p in tmp_path.iterdir()} == {"out", "other", "away"}


def test_an_adapter_never_goes_into_its_inputs_nor_beside_another_command(bases: Path, tmp_path: Path) -> None:
    lm = shutil.copytree(bases / "llama", tmp_path / "llama")
    for place in (lm, lm / "adapter"):
        with pytest.raises(ValueError, match="is, or lies within, the input"):
            make(tmp_path, place, "lora", calib_dataset=None)
    with pytest.raises(ValueError, match=r"is, or lies within, the input .*text\.txt"):
        make(bases, bases / "text.txt")
    for place in (Path("."), tmp_path / ".."):
        with pytest.raises(ValueError, match="name a folder for the adapter"):
            make(tmp_path, place, "lora", calib_dataset=None)
    with sole_writer(tmp_path / "out"), pytest.raises(ValueError, match="another command is writing there"):
        make(tmp_path, tmp_path / "out", "lora", calib_dataset=None)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real", target_is_directory=True)
    make(tmp_path, link, "lora", calib_dataset=None)
    assert link.is_symlink()
    assert (tmp_path / "real" / "nullspace.json").is_file()


def test_few_tokens_on_request_and_a_short_text_are_said(bases: Path, tmp_path: Path) -> None:
    built = make(bases, tmp_path / "out", calib_loader_size=10, allow_few_tokens=True)
    assert built.layers[0].of_input.num_tokens == 9 * 16
    assert not built.notes
    assert "1000 x 16 = 16000 were asked for" in make(bases, tmp_path / "long", calib_loader_size=1000).notes[0]


def test_an_empty_text_is_refused(bases: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.txt: it holds no text"):
        make(bases, tmp_path / "out", calib_dataset=str(tmp_path / "empty.txt"))


def test_a_model_of_zeros_is_built_on(bases: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    shutil.copytree(bases / "llama", tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    save_file({name: torch.zeros_like(w) for name, w in load_file(file).items()}, file, {"format": "pt"})
    for method in set(METHODS) - {"corda"}:
        built = make(tmp_path, tmp_path / method, method)
        assert built.meta["start_difference"] == built.meta["start_difference_relative"] == 0
    with pytest.raises(ValueError, match="all inputs of a layer may be zero"):
        make(tmp_path, tmp_path / "corda", "corda")


def test_nan_in_the_weights_is_named_by_the_layer(bases: Path, tmp_path: Path) -> None:
    broken = write_tiny_lm(tmp_path / "llama")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.self_attn.v_proj.weight"][0, 0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_bytes((bases / "text.txt").read_bytes())
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.self_attn\.o_proj: NaN or infinity"):
        make(tmp_path, tmp_path / "out")


def test_what_peft_has_saved_in_the_folder_since_is_not_replaced(bases: Path, tmp_path: Path) -> None:
    """The quickest way to train it outside of this project is to save it where it was loaded from."""
    base, out = resolve_reference(str(bases / "llama")), tmp_path / "a"
    settings = settings_of(bases)
    build_adapter(base, out, method="lora", rank=RANK, seed=0, settings=settings)
    model = PeftModel.from_pretrained(load_causal_lm(base.folder, device=torch.device("cpu")), out, is_trainable=True)
    for parameter in model.parameters():
        parameter.data.add_(0.5 * parameter.requires_grad)
    model.save_pretrained(out)
    (out / "README.md").unlink()  # PEFT's card alone would be refused
    before = contents(out)
    with pytest.raises(ValueError, match=r"adapter_config.json: changed since it was written.*would be lost"):
        build_adapter(base, out, method="lora", rank=RANK, seed=0, settings=settings)
    assert contents(out) == before
