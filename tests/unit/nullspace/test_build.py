"""Adapters of every method, from text to a folder, on tiny models of four families."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.language_models import FAMILIES
from tests.unit.nullspace.builds import RANK, make, settings_of
from tests.unit.nullspace.trainings import contents
from torch import Tensor

from subspacelab.checkpoints import resolve_reference
from subspacelab.core.files import read_json
from subspacelab.linalg.subspaces import principal_angles
from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_folder import read_meta
from subspacelab.models.lora_model import open_adapter
from subspacelab.nullspace import building, starts
from subspacelab.nullspace.building import build_adapter
from subspacelab.nullspace.display import print_built
from subspacelab.nullspace.inits import METHODS
from subspacelab.nullspace.logging import track_built
from subspacelab.tracking import MemoryTracker

CPU = torch.device("cpu")
ZERO = tuple(name for name, method in METHODS.items() if not method.moves_weight)
"""Methods that start with A = 0."""


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 43)[None]).logits


@pytest.mark.parametrize("family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES[1:])])
@pytest.mark.parametrize("method", METHODS)
def test_start_is_the_base_and_plain_peft_loads_it(bases: Path, tmp_path: Path, method: str, family: str) -> None:
    built = make(bases, tmp_path / "out", method, family)
    base = load_causal_lm(bases / family, device=CPU)
    untouched = logits(base)
    live = open_adapter(tmp_path / "out", trainable=True)
    trained = {n.split(".")[-3] for n, p in live.model.named_parameters() if p.requires_grad}
    assert trained == ({"lora_B"} if METHODS[method].down_frozen else {"lora_A", "lora_B"})
    plain = PeftModel.from_pretrained(base, tmp_path / "out")
    if method in ZERO:
        assert built.meta["start_difference"] == 0
        assert torch.equal(logits(live.model), untouched)
        assert torch.equal(logits(plain), untouched)
    else:
        assert 0 < built.meta["start_difference_relative"] < 1e-5
        limit = 1e-5 * untouched.abs().max().item()
        torch.testing.assert_close(logits(live.model), untouched, rtol=0, atol=limit)
        torch.testing.assert_close(logits(plain), untouched, rtol=0, atol=limit)
        assert all((f.A0 @ f.B0).norm() > 1e-2 for f in live.factors().values())  # something was taken out of W


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes(bases: Path, tmp_path: Path, method: str) -> None:
    make(bases, tmp_path / "one", method)
    torch.rand(3)
    make(bases, tmp_path / "two", method)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_null_basis_is_that_of_the_tokens_it_was_given(bases: Path, tmp_path: Path) -> None:
    built = make(bases, tmp_path / "out")
    live = open_adapter(tmp_path / "out")
    for layer in built.layers:
        of_input = layer.of_input
        assert of_input is not None
        b = live.factors()[layer.module].B
        torch.testing.assert_close(b @ b.T, torch.eye(RANK), rtol=0, atol=1e-6)
        # B is stored in float32, which costs 1e-7 of ||X||.
        assert layer.BX_ratio == pytest.approx(of_input.optimum, rel=1e-5, abs=1e-7)
        assert layer.BX_ratio_held_out >= of_input.optimum_held_out
        assert of_input.random == math.sqrt(RANK / layer.in_features)
        assert layer.BX_ratio_held_out < of_input.random
        assert of_input.num_tokens == 35 * 16
        assert of_input.num_held_out == 5 * 16
        assert 0 <= of_input.halves_angle_mean <= of_input.halves_angle_max <= 90
    assert built.meta["summary"]["BX_ratio"] == pytest.approx(
        sum(layer.BX_ratio for layer in built.layers) / len(built.layers)
    )


def test_layers_that_share_an_input_share_b(bases: Path, tmp_path: Path) -> None:
    make(bases, tmp_path / "out")
    b = {name: f.B for name, f in open_adapter(tmp_path / "out").factors().items()}
    block = "model.layers.1."
    assert torch.equal(b[block + "self_attn.q_proj"], b[block + "self_attn.v_proj"])
    assert torch.equal(b[block + "mlp.gate_proj"], b[block + "mlp.up_proj"])
    assert not torch.equal(b[block + "self_attn.q_proj"], b[block + "self_attn.o_proj"])


def test_both_v2_span_the_same_rows_and_only_the_rows_of_others_differ(bases: Path, tmp_path: Path) -> None:
    bases_of = {}
    for method in ("lora_null_v2", "lora_null_v2_projected", "lora_null_v1", "pissa"):
        make(bases, tmp_path / method, method)
        bases_of[method] = {n: f.B.detach().T for n, f in open_adapter(tmp_path / method).factors().items()}
    for name, b in bases_of["lora_null_v2"].items():
        # Rows scaled by sqrt(s), in float32: 1e-7 times the condition of W N.
        assert principal_angles(b, bases_of["lora_null_v2_projected"][name]).max() < 1e-4
        assert torch.equal(bases_of["lora_null_v1"][name], bases_of["lora_null_v2_projected"][name])
        assert principal_angles(b, bases_of["pissa"][name]).max() > 0.1


def test_a_frozen_random_b_is_orthonormal_and_drawn_by_the_seed(bases: Path, tmp_path: Path) -> None:
    seeds = {"one": 7, "two": 8}
    drawn = {}
    for name, seed in seeds.items():
        make(bases, tmp_path / name, "frozen_random", seed=seed, calib_dataset=None)
        live = open_adapter(tmp_path / name)
        assert live.down_frozen
        drawn[name] = [f.B for f in live.factors().values()]
        assert not any(f.A.any() for f in live.factors().values())
    for one, two in zip(*drawn.values(), strict=True):
        torch.testing.assert_close(one @ one.T, torch.eye(RANK), rtol=0, atol=1e-6)
        assert not torch.equal(one, two)


def test_pissa_takes_the_top_and_milora_the_bottom_of_w(bases: Path, tmp_path: Path) -> None:
    linears = target_linears(load_causal_lm(bases / "llama", device=CPU))
    for method, part in (("pissa", slice(None, RANK)), ("milora", slice(-RANK, None))):
        make(bases, tmp_path / method, method, calib_dataset=None)
        for name, f in open_adapter(tmp_path / method).factors().items():
            u, s, vh = torch.linalg.svd(linears[name].weight.detach().double(), full_matrices=False)
            expected = (u[:, part] * s[part]) @ vh[part]
            torch.testing.assert_close((f.A0 @ f.B0).double(), expected, rtol=0, atol=1e-5 * s[0].item())


def test_corda_is_what_peft_makes_of_the_same_windows(bases: Path, tmp_path: Path) -> None:
    """kpm: svd(W C) C^-1 with each window scaled by its maximum, written here from its description."""
    built = make(bases, tmp_path / "out", "corda", targets=["layers.0.self_attn.q_proj"])
    model = load_causal_lm(bases / "llama", device=CPU)
    windows = building._windows(resolve_reference(str(bases / "llama")), settings_of(bases), 7)
    (name,) = built.meta["targets"]
    linear, seen = model.get_submodule(name), []
    hook = linear.register_forward_pre_hook(lambda _, x: seen.append(x[0][0].detach().double()))
    with torch.no_grad():
        for row in windows.input_ids[:35]:
            model(input_ids=row[None])
    hook.remove()
    c = sum((x / x.max().abs()).T @ (x / x.max().abs()) for x in seen) / len(seen)
    c += 0.01 * c.diagonal().mean() * torch.eye(len(c))
    w = linear.weight.detach().double()
    u, s, vh = torch.linalg.svd(w @ c)
    expected = u[:, -RANK:] * s[-RANK:] @ vh[-RANK:] @ torch.linalg.inv(c)
    f = open_adapter(tmp_path / "out").factors()[name]
    # PEFT inverts C in float32.
    torch.testing.assert_close((f.A0 @ f.B0).double(), expected, rtol=0, atol=1e-3 * expected.abs().max().item())


def test_lora_starts_as_peft_does_and_differs_from_seed_to_seed(bases: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        make(bases, tmp_path / str(seed), "lora", seed=seed, calib_dataset=None)
    one, two = (load_file(tmp_path / str(seed) / "adapter_model.safetensors") for seed in (1, 2))
    for name in one:
        if "lora_A" in name:
            # Kaiming-uniform with a = sqrt(5): uniform within 1 / sqrt(in).
            assert 0.8 < one[name].abs().max() * one[name].shape[1] ** 0.5 <= 1
            assert not torch.equal(one[name], two[name])
        else:
            assert not one[name].any()


def test_without_calibration_only_methods_that_need_none(bases: Path, tmp_path: Path) -> None:
    built = make(bases, tmp_path / "out", "milora", calib_dataset=None)
    assert built.meta["calibration"] is None
    assert built.layers[0].BX_ratio is None
    with pytest.raises(ValueError, match="calib_dataset=None, this one is of calib_dataset='wikitext2'"):
        make(bases, tmp_path / "out", "corda", calib_dataset=None)


def test_a_gpu_without_room_for_a_solve_costs_a_line_and_no_bit(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make(bases, tmp_path / "one", "lora_null_v1", targets=["down_proj"])
    original, failures = starts.null_space, [torch.OutOfMemoryError("CUDA out of memory")]

    def full_once(c: Tensor, rank: int) -> Any:
        if failures:
            raise failures.pop()
        return original(c, rank)

    monkeypatch.setattr(starts, "null_space", full_once)
    make(bases, tmp_path / "two", "lora_null_v1", targets=["down_proj"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "too little GPU memory to solve for [40, 40]" in capsys.readouterr().err


def test_how_much_of_the_model_is_reached_is_stored_and_said(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    built = make(bases, tmp_path / "out", "lora", calib_dataset=None, targets=["down_proj"])
    parameters = sum(p.numel() for p in load_causal_lm(bases / "llama", device=CPU).parameters())
    stored = read_json(tmp_path / "out" / "nullspace.json")["reach"]
    assert (stored["reached"], stored["parameters"]) == (2 * 24 * 40, parameters)
    assert stored["left_out"]["model.layers.*.mlp.up_proj.weight"] == 2 * 24 * 40
    print_built(built)
    said = " ".join(capsys.readouterr().out.split())
    assert f"warning: adapters reach 18 % of {parameters:,} parameters, less than a third, and" in said


def test_report_is_printed_and_tracked_by_layer(bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    built, tracker = make(bases, tmp_path / "out"), MemoryTracker()
    print_built(built)
    out = capsys.readouterr().out
    assert "lora_null_v2 of rank 5" in out
    assert "0.self_attn.q_proj" in out
    assert "logits differ from the base's by 0" in out
    track_built(built, tracker)
    curves = {name: dict(points) for name, points in tracker.metrics.items()}
    for layer in built.layers:
        assert curves[f"BX_ratio/{layer.kind}"][layer.index] == layer.BX_ratio
        assert curves[f"optimum_held_out/{layer.kind}"][layer.index] == layer.of_input.optimum_held_out
    assert set(curves["BX_ratio/down_proj"]) == {0, 1}
    assert read_json(tmp_path / "out" / "nullspace.json") == built.meta
    assert list(tracker.tables["layers"]["module"]) == built.meta["targets"]
    track_built(built, tracker, seed=8)
    assert tracker.headline == {}
    assert dict(tracker.metrics["seed-8/BX_ratio/q_proj"]) == curves["BX_ratio/q_proj"]
    assert tracker.artifacts == ["adapter/nullspace.json", "seed-8/adapter/nullspace.json"]


def test_an_adapter_that_was_built_on_the_older_name_is_built_again_to_the_same_bytes(
    bases: Path, tmp_path: Path
) -> None:
    source, settings = resolve_reference(str(bases / "llama")), settings_of(bases)
    built = []
    for scheme in ("demo", "pipeline"):
        named = replace(source, reference=f"{scheme}:llm")
        build_adapter(named, tmp_path / "a", method="lora", rank=RANK, seed=0, settings=settings)
        built.append(contents(tmp_path / "a"))
    assert built[0] == built[1]
    assert read_meta(tmp_path / "a")["base"]["reference"] == "demo:llm"
