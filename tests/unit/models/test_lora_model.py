"""Adapters alive in their model, on the disk, and in plain PEFT's hands."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.language_models import FAMILIES, tiny_model, write_tiny_lm
from torch import Tensor

from subspacelab.core.files import read_json, write_json
from subspacelab.models import lora_model as lora_freeze
from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_factors import Factors, from_lora, to_lora
from subspacelab.models.lora_folder import base_digest, write_adapter
from subspacelab.models.lora_model import (
    LiveAdapter,
    attach_adapter,
    load_plain,
    open_adapter,
    require_trainable,
    set_trainable,
)

CPU = torch.device("cpu")
RANK = 4
IDS = torch.arange(3, 33)[None]
KINDS = ("plain", "plain_frozen", "moved", "moved_frozen")
"""W_res = W or not; B frozen or not."""


@dataclass(frozen=True)
class Place:
    base: Path
    folder: Path
    live: LiveAdapter


def random_factors(model: Any, kind: str) -> dict[str, Factors]:
    g = torch.Generator().manual_seed(1)
    factors = {}
    for name, linear in target_linears(model).items():
        out, width = linear.weight.shape
        a, b = 0.1 * torch.randn(out, RANK, generator=g), torch.randn(RANK, width, generator=g)
        factors[name] = (
            Factors(a, b, a.clone(), b.clone()) if kind.startswith("moved") else Factors(torch.zeros_like(a), b)
        )
    return factors


def meta_of(model: Any, base: Path, kind: str) -> dict[str, Any]:
    linears = target_linears(model)
    digest = base_digest(next(iter(linears.values())).weight)
    return {
        "method": kind,
        "rank": RANK,
        "seed": 0,
        "base": {"reference": str(base), "revision": None, "digest": digest},
        "targets": list(linears),
        "down_frozen": kind.endswith("frozen"),
        "layers": [],
        "trained": False,
    }


def attach(base: Path, kind: str) -> LiveAdapter:
    model = load_causal_lm(base, device=CPU)
    return attach_adapter(model, random_factors(model, kind), meta_of(model, base, kind))


def save_adapter(live: LiveAdapter, folder: Path, trained: Any = False) -> None:
    write_adapter(folder, live.factors(), live.meta | {"trained": trained}, "# card")


def train(live: LiveAdapter, steps: int = 3, *, check: bool = True) -> None:
    """AdamW on the next token; after every step a frozen B is bit-equal and so is every base weight."""
    set_trainable(live.model, up=True, down=not live.down_frozen)
    down = {n: f.B.detach().clone() for n, f in live.factors().items()}
    rest = {n: p.detach().clone() for n, p in live.model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in live.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        live.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(p, rest[n]) for n, p in live.model.named_parameters() if n in rest)
        moved = [not torch.equal(f.B, down[n]) for n, f in live.factors().items()]
        assert not any(moved) if live.down_frozen else all(moved)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.fixture(params=[(family, kind) for family in FAMILIES for kind in KINDS], ids="-".join)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A base, and an adapter on it that was trained for three steps and saved."""
    family, kind = request.param
    base = write_tiny_lm(tmp_path / "base", family)
    live = attach(base, kind)
    train(live)
    save_adapter(live, tmp_path / "adapter", trained={"steps": 3})
    return Place(base, tmp_path / "adapter", live)


def test_plain_peft_gives_the_live_models_outputs(place: Place) -> None:
    base = load_causal_lm(place.base, device=CPU)
    expected, untouched = logits(place.live.model), logits(base)
    assert (expected - untouched).abs().max() > 1e-2  # else nothing below says anything
    plain = PeftModel.from_pretrained(base, place.folder)
    # 0 where W_res = W: the same products. Else W_res x + A B x against W x - A0 B0 x + A B x: float32 rounding.
    size = 1e-5 * expected.abs().max().item() if place.live.initial else 0
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=size)
    plain.set_adapter("default")
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=size)
    with plain.disable_adapter():
        assert torch.equal(logits(plain), untouched)
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_an_opened_adapter_is_the_saved_one(place: Place) -> None:
    again = open_adapter(place.folder)
    assert again.meta == place.live.meta | {"trained": {"steps": 3}, "files": again.meta["files"]}
    assert not any(p.requires_grad for p in again.model.parameters())
    for name, before in place.live.factors().items():
        after = again.factors()[name]
        assert torch.equal(after.B, before.B)
        if not (place.live.initial and place.live.down_frozen):
            assert torch.equal(after.A, before.A)
        assert torch.equal(again.residual_weight(name), place.live.residual_weight(name))
    # A of a moved and frozen method is stored as A - A0: one more rounding.
    torch.testing.assert_close(logits(again.model), logits(place.live.model), rtol=0, atol=1e-5)


def test_original_weights_and_exports_agree(place: Place) -> None:
    base = dict(load_causal_lm(place.base, device=CPU).named_modules())
    for name, f in place.live.factors().items():
        w = base[name].weight
        # One rounding of W - A0 B0, one of the sum.
        torch.testing.assert_close(place.live.base_weight(name), w.detach(), rtol=0, atol=2e-7 * w.abs().max().item())
        down, up = to_lora(f, down_frozen=place.live.down_frozen)
        update = f.A @ f.B if f.A0 is None else f.A @ f.B - f.A0 @ f.B0
        torch.testing.assert_close(up @ down, update, rtol=0, atol=1e-6)
        assert len(down) == RANK * (2 if f.A0 is not None and not place.live.down_frozen else 1)
        initial = None if f.A0 is None else (f.A0, f.B0)
        back = from_lora(down, up, initial, down_frozen=place.live.down_frozen)
        torch.testing.assert_close(back.A, f.A, rtol=0, atol=1e-6)
        assert torch.equal(back.B, f.B)


def test_a_saved_adapter_is_the_same_bytes_twice_and_an_ordinary_lora(place: Place, tmp_path: Path) -> None:
    save_adapter(place.live, tmp_path / "again", trained={"steps": 3})
    for file in place.folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    config = read_json(place.folder / "adapter_config.json")
    assert (config["peft_type"], config["init_lora_weights"], config["bias"]) == ("LORA", True, "none")
    assert config["r"] == config["lora_alpha"]
    assert config["target_modules"] == sorted(place.live.meta["targets"])


FROZEN = [pytest.param((family, kind), id=f"{family}-{kind}") for family in ("qwen2", "opt") for kind in KINDS[1::2]]


@pytest.mark.parametrize("place", FROZEN, indirect=True)
def test_a_frozen_b_stays_frozen_whatever_peft_is_asked_for(place: Place, tmp_path: Path) -> None:
    live = open_adapter(place.folder, trainable=True)
    wanted = {f"base_model.model.{name}.lora_B.default.weight" for name in live.meta["targets"]}

    def trained() -> set[str]:
        return {name for name, p in live.model.named_parameters() if p.requires_grad}

    assert trained() == wanted  # neither B nor a bias of the base
    live.model.set_adapter("default")
    assert trained() == wanted
    live.model.base_model.disable_adapter_layers()
    live.model.base_model.enable_adapter_layers()
    assert trained() == wanted
    live.model.set_requires_grad("default", True)
    assert trained() == wanted
    with live.model.disable_adapter():
        pass
    assert trained() == wanted
    # What transformers' Trainer does when it resumes from a checkpoint of its own.
    live.model.save_pretrained(tmp_path / "checkpoint")
    live.model.load_adapter(str(tmp_path / "checkpoint"), "default", is_trainable=True)
    assert trained() == wanted
    train(live)


@pytest.mark.parametrize("place", [("llama", "plain_frozen")], indirect=True)
def test_a_resumed_training_does_not_move_b(place: Place) -> None:
    before = load_file(place.folder / "adapter_model.safetensors")
    live = open_adapter(place.folder, trainable=True)
    train(live)
    save_adapter(live, place.folder, trained={"steps": 6})
    after = load_file(place.folder / "adapter_model.safetensors")
    assert all(torch.equal(before[n], after[n]) == ("lora_A" in n) for n in before)
    assert read_json(place.folder / "nullspace.json")["trained"] == {"steps": 6}


def test_a_peft_that_forgets_the_freeze_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = attach(write_tiny_lm(tmp_path / "base"), "plain_frozen")
    layer = lora_freeze.LoraLayer
    with monkeypatch.context() as patch:
        patch.setattr(layer, "_freeze_non_trainable_peft_weights", lambda *_: None)
        with pytest.raises(RuntimeError, match=r"lora_A\.default\.weight trains but must not \(14 such"):
            set_trainable(live.model, up=True, down=False)
    set_trainable(live.model, up=True, down=False)
    live.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_B.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"lora_B\.default\.weight is frozen but must train"):
        require_trainable(live.model, up=True, down=False)

    class Bare:
        pass

    with pytest.raises(RuntimeError, match="keeps no list of frozen adapter weights; install peft"):
        lora_freeze._register(Bare(), frozen=True)  # type: ignore[arg-type]


def test_attaching_does_not_move_the_callers_generator(tmp_path: Path) -> None:
    base = write_tiny_lm(tmp_path / "base")
    state = torch.random.get_rng_state()
    attach(base, "plain")
    assert torch.equal(state, torch.random.get_rng_state())


def edit(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


DOWN = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WRONG = {
    "no meta": (lambda f: (f / "nullspace.json").unlink(), r"no nullspace\.json.*subspacelab nullspace build"),
    "meta without rank": (
        lambda f: write_json(
            f / "nullspace.json", {k: v for k, v in read_json(f / "nullspace.json").items() if k != "rank"}
        ),
        "no key 'rank'; build the adapter again",
    ),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        r"adapter_model\.safetensors: missing or broken",
    ),
    "no start": (lambda f: (f / "initial.safetensors").unlink(), "q_proj has lora_A .* rank 4 was built"),
    "a tensor gone": (
        lambda f: edit(f, "adapter_model.safetensors", lambda t: t.pop(DOWN)),
        r"q_proj\.lora_A\.weight is missing; build",
    ),
    "rank": (
        lambda f: edit(f, "adapter_model.safetensors", lambda t: t.update({DOWN: torch.zeros(3, 24)})),
        r"q_proj has lora_A \[3, 24\] and lora_B \[24, 8\], rank 8 was built",
    ),
    "width": (
        lambda f: edit(f, "adapter_model.safetensors", lambda t: t.update({DOWN: torch.zeros(8, 23)})),
        r"made for another base: .*q_proj is \[24, 23\], .* has \[24, 24\]",
    ),
    "NaN": (
        lambda f: edit(f, "adapter_model.safetensors", lambda t: t[DOWN].__setitem__((0, 0), torch.nan)),
        "q_proj.lora_A.weight: 1 NaN",
    ),
    "other weights": (
        lambda f: write_tiny_lm(f.parent / "base", seed=5),
        "q_proj of .* holds other weights; build again",
    ),
    "other family": (
        lambda f: (shutil.rmtree(f.parent / "base"), write_tiny_lm(f.parent / "base", "opt")),
        "made for another base: .*q_proj is .* has no such layer",
    ),
    "base gone": (
        lambda f: shutil.rmtree(f.parent / "base"),
        "no such checkpoint on this disk; give its place as `base`",
    ),
    "a relative base, from elsewhere": (
        lambda f: write_json(
            f / "nullspace.json",
            read_json(f / "nullspace.json") | {"base": {"reference": "models/m", "revision": None, "digest": ""}},
        ),
        "base, models/m, is no such checkpoint on this disk; give its place as `base`",
    ),
    "damaged within": (
        lambda f: edit(f, "adapter_model.safetensors", lambda t: t[DOWN].zero_()),
        r"its tensors are not those that nullspace\.json was written with; build the adapter again",
    ),
    "layers of text": (
        lambda f: write_json(f / "nullspace.json", read_json(f / "nullspace.json") | {"layers": ["x"]}),
        r"nullspace\.json: layers\.0 cannot be x; build the adapter again",
    ),
    "a digest that is none": (
        lambda f: write_json(f / "nullspace.json", read_json(f / "nullspace.json") | {"files": {"a": 1}}),
        r"nullspace\.json: files\.a cannot be 1; build the adapter again",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    spoil, words = WRONG[case]
    save_adapter(attach(write_tiny_lm(tmp_path / "base"), "moved"), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ValueError, match=words) as caught:
        open_adapter(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changed", [{"peft_type": "MAGIC"}, {"r": "x"}, {"auto_mapping": {"parent_library": "os"}}])
def test_a_config_of_another_kind_of_adapter_never_reaches_peft(tmp_path: Path, changed: dict[str, Any]) -> None:
    base = write_tiny_lm(tmp_path / "base")
    save_adapter(attach(base, "plain"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | changed)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {next(iter(changed))}.* cannot be"):
        load_plain(base, tmp_path / "adapter", device=CPU)


@pytest.mark.parametrize(
    "changed",
    [{"lora_alpha": 64}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"target_modules": ["q_proj"]}],
)
def test_a_config_by_which_peft_would_make_another_adapter_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    save_adapter(attach(write_tiny_lm(tmp_path / "base"), "moved"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | changed)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {next(iter(changed))} is .*, it was written as"):
        open_adapter(tmp_path / "adapter")


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    live = attach(write_tiny_lm(tmp_path / "base"), "moved_frozen")
    save_adapter(live, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()}
    with torch.no_grad():
        next(iter(live.factors().values())).B.mul_(2)
    with pytest.raises(RuntimeError, match="frozen down-projection has moved"):
        save_adapter(live, tmp_path / "adapter")
    assert {p.name: p.read_bytes() for p in (tmp_path / "adapter").iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_bfloat16_base_keeps_b_in_float32(tmp_path: Path) -> None:
    model = tiny_model().bfloat16()
    live = attach_adapter(model, random_factors(model, "plain"), meta_of(model, tmp_path, "plain"))
    assert {f.B.dtype for f in live.factors().values()} == {torch.float32}
