"""Training of adapters: what moves, what never does, and what a killed training comes to."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.unit.nullspace.trainings import (
    RANK,
    ROWS,
    SETTINGS,
    STEPS,
    Killed,
    contents,
    kill_at,
    train_tiny,
    write_adapter_of,
    write_base,
)

from subspacelab.core.files import write_json
from subspacelab.core.ownership import sole_writer
from subspacelab.models import fine_tuning
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer
from subspacelab.models.lora_model import open_adapter
from subspacelab.nullspace.encoding import encode_rows
from subspacelab.nullspace.inits import METHODS
from subspacelab.nullspace.training import _fine_tuning, train_adapter

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KINDS = ("lora_null_v2", "lora_null_v2_projected", "lora_null_v1", "lora")
"""B frozen or not, A_0 = 0 or not."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter of each kind; to be read only."""
    folder = write_base(tmp_path_factory.mktemp("base"))
    for method in KINDS:
        write_adapter_of(folder, folder / method, method)
    return folder


@pytest.mark.parametrize("method", KINDS)
def test_exactly_what_the_method_says_is_trained(place: Path, tmp_path: Path, method: str) -> None:
    built = {name: (f.A.clone(), f.B.clone()) for name, f in open_adapter(place / method).factors().items()}
    seen: list[Mapping[str, float]] = []
    result = train_tiny(place / method, tmp_path, log=lambda metrics, step: seen.append(metrics | {"step": step}))
    live = open_adapter(result.folder)
    frozen = METHODS[method].down_frozen
    for name, f in live.factors().items():
        a, b = built[name]
        assert not torch.equal(f.A, a), name
        assert torch.equal(f.B, b) == frozen, name
    assert [int(m["step"]) for m in seen if "train_loss" in m] == list(range(1, STEPS + 1))
    assert seen[-1]["train_loss"] < seen[0]["train_loss"]
    trained = result.meta["trained"]
    each = sum(a.numel() + (0 if frozen else b.numel()) for a, b in built.values())
    assert trained["trainable_parameters"] == each
    assert trained["all_parameters"] == sum(p.numel() for p in live.model.parameters())
    assert (trained["steps"], trained["num_rows"], trained["num_skipped"]) == (STEPS, len(ROWS), 0)
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files <= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "initial.safetensors",
        "nullspace.json",
        "README.md",
    }


@pytest.mark.parametrize("method", KINDS)
def test_plain_peft_loads_the_trained_adapter_with_the_same_outputs(place: Path, tmp_path: Path, method: str) -> None:
    folder = train_tiny(place / method, tmp_path).folder
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        live = open_adapter(folder).model(input_ids=ids).logits
        base = load_causal_lm(place / "lm", device=CPU)
        before = base(input_ids=ids).logits
        plain = PeftModel.from_pretrained(base, folder)(input_ids=ids).logits
    assert (live - before).abs().max() > 0.1
    # W_res + A_0 B_0 = W to float32's rounding where A_0 is not 0.
    torch.testing.assert_close(plain, live, rtol=0, atol=1e-5 * before.abs().max().item())


@pytest.mark.parametrize("method", KINDS)
def test_a_killed_training_continues_to_the_same_bytes(place: Path, tmp_path: Path, method: str) -> None:
    whole = contents(train_tiny(place / method, tmp_path / "whole").folder)
    for step in (1, 4, STEPS) if method == "lora_null_v2" else (5,):
        output = tmp_path / f"killed-{step}"
        with pytest.raises(Killed):
            train_tiny(place / method, output, log=kill_at(step))
        assert not (output / "ft").exists()
        logged: list[int] = []
        broken = train_tiny(place / method, output, log=lambda metrics, at, to=logged: to.append(at))
        assert contents(broken.folder) == whole, f"killed at {step}"
        assert not (output / "checkpoints").exists()
        assert set(logged) == set(range((step - 1) // 2 * 2 + 1, STEPS + 1)), "continued from the last checkpoint"


def test_a_checkpoint_that_was_cut_short_is_not_used(place: Path, tmp_path: Path) -> None:
    whole = contents(train_tiny(place / "lora_null_v2", tmp_path / "whole").folder)
    with pytest.raises(Killed):
        train_tiny(place / "lora_null_v2", tmp_path / "broken", log=kill_at(5))
    last = tmp_path / "broken" / "checkpoints" / "checkpoint-4"
    tensors = last / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-64] + bytes(64))  # of the right size, with zeros at its end
    assert contents(train_tiny(place / "lora_null_v2", tmp_path / "broken").folder) == whole


def test_the_freeze_survives_a_resume(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train_tiny(place / "lora_null_v2", tmp_path, log=kill_at(4))
    given: list[int] = []
    original = fine_tuning._AdapterTrainer.create_optimizer

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        optimizer = original(self, *args, **kwargs)
        given.append(sum(p.numel() for group in optimizer.param_groups for p in group["params"]))
        return optimizer

    monkeypatch.setattr(fine_tuning._AdapterTrainer, "create_optimizer", watched)
    trained = train_tiny(place / "lora_null_v2", tmp_path).meta["trained"]
    assert given == [trained["trainable_parameters"]]
    assert given == [sum(f.A.numel() for f in open_adapter(place / "lora_null_v2").factors().values())]


def test_a_b_that_moves_stops_the_training_and_names_the_layer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fine_tuning._BitEqual.on_optimizer_step

    def moved(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            f = self._live.factors()["model.layers.1.mlp.up_proj"]
            with torch.no_grad():
                f.B[0, 0] = torch.nextafter(f.B[0, 0], torch.tensor(9.0))
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(fine_tuning._BitEqual, "on_optimizer_step", moved)
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.up_proj: the frozen B has moved in step 3"):
        train_tiny(place / "lora_null_v2", tmp_path)


def test_a_finished_training_is_left_as_it_is_and_another_is_refused(place: Path, tmp_path: Path) -> None:
    first = train_tiny(place / "lora_null_v2", tmp_path)
    before = contents(first.folder)
    again = train_tiny(place / "lora_null_v2", tmp_path, log=kill_at(1), save_steps=3)  # where it saves is no matter
    assert again.meta == first.meta
    assert contents(first.folder) == before
    job = {key: first.meta["trained"][key] for key in ("job", "names")}
    for left in ("checkpoints/job.json", f".checkpoints.{'a' * 32}.partial/a.json"):
        write_json(tmp_path / left, job)  # by a kill between, or in, the last steps of all
        train_tiny(place / "lora_null_v2", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["ft"]
    for changed, words in (
        ({"seed": 8}, "seed=7, this one is of seed=8"),
        ({"lr": 2e-2}, "lr=0.01, this one is of lr=0.02"),
        ({"data": "others", "rows": ROWS[:9]}, r"rows='rows \(\w{8}\)', this one is of rows='others \(\w{8}\)'"),
    ):
        with pytest.raises(ValueError, match=words):
            train_tiny(place / "lora_null_v2", tmp_path, **changed)
    with pytest.raises(ValueError, match=r"adapter='.*lora_null_v2 \(\w{8}\)', this one is of adapter='.*/lora \("):
        train_tiny(place / "lora", tmp_path)
    assert contents(first.folder) == before
    tensors = first.folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-64] + bytes(64))
    write_json(first.folder / "nullspace.json", first.meta | {"rank": first.meta["rank"] + 1})
    assert contents(train_tiny(place / "lora_null_v2", tmp_path).folder) == before, "damaged, so made anew"
    (first.folder / "adapter_config.json").write_text("{")
    assert contents(train_tiny(place / "lora_null_v2", tmp_path).folder) == before, "damaged, so made anew"
    write_json(first.folder / "adapter_config.json", {})
    (first.folder / "adapter_config.json").write_text("{}")  # as PEFT writes it, without a line's end
    with pytest.raises(ValueError, match="adapter_config.json: changed since it was written"):
        train_tiny(place / "lora_null_v2", tmp_path)


def test_a_link_to_where_checkpoints_go_is_written_through_and_stays(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoints").symlink_to(tmp_path / "disk")
    for kill in (4, None):
        try:
            train_tiny(place / "lora_null_v2", tmp_path / "out", log=kill_at(kill) if kill else None)
        except Killed:
            assert (tmp_path / "disk" / "checkpoint-2").is_dir()
    assert (tmp_path / "out" / "checkpoints").is_symlink()
    assert not (tmp_path / "disk").exists()


FOREIGN = {
    "folder of checkpoints": ("checkpoints/base/model.safetensors", "checkpoints: holds 'base', no part of this"),
    "the Trainer's of another program": ("checkpoints/checkpoint-4/optimizer.pt", "holds 'checkpoint-4', no part"),
    "a job of another program": (
        "checkpoints/job.json",
        r"job\.json: the content cannot be mine; move its folder away",
    ),
    "a file called checkpoints": ("checkpoints", "checkpoints: a file, not this training's checkpoints"),
    "folder called ft": ("ft/thesis.txt", r"ft: holds 'thesis\.txt', no part of a trained adapter"),
    "an adapter of another program": ("ft/adapter_config.json", r"no nullspace\.json, so no adapter of this project"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_others_made_is_named_and_stays(place: Path, tmp_path: Path, case: str) -> None:
    name, words = FOREIGN[case]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('"mine"')
    with pytest.raises(ValueError, match=words) as e:
        train_tiny(place / "lora", tmp_path, log=kill_at(1))
    assert "\n" not in str(e.value)
    assert contents(tmp_path) == {name: b'"mine"'}


def test_a_training_never_goes_into_its_inputs_nor_beside_another(place: Path, tmp_path: Path) -> None:
    for output in (place / "lora", place / "lm"):
        with pytest.raises(ValueError, match=r"ft: is, or lies within, the input"):
            train_tiny(place / "lora", output)
    shutil.copytree(place / "lora", tmp_path / "ft")
    with pytest.raises(ValueError, match="is, or lies within, the input"):
        train_tiny(tmp_path / "ft", tmp_path)
    with pytest.raises(ValueError, match="holds an adapter as it was built, which would be lost"):
        train_tiny(place / "lora", tmp_path)
    with sole_writer(tmp_path / "out" / "ft"), pytest.raises(ValueError, match="another command is writing there"):
        train_tiny(place / "lora", tmp_path / "out")
    assert contents(tmp_path / "ft") == contents(place / "lora")


@pytest.mark.parametrize("changed", [{"seed": 8}, {"lr": 2e-2}, {"max_steps": 5}])
def test_checkpoints_of_another_training_are_neither_continued_nor_removed(
    place: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        train_tiny(place / "lora", tmp_path, log=kill_at(4))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"this one is of {next(iter(changed))}="):
        train_tiny(place / "lora", tmp_path, **changed)
    assert contents(tmp_path) == before


def test_weight_decay_is_the_methods_own_unless_it_is_given() -> None:
    for method, given, used in (("lora", None, 0.0), ("lora_decay", None, 0.3), ("lora_decay", 0.1, 0.1)):
        how = _fine_tuning(40, method, replace(SETTINGS, weight_decay=given), seed=1)
        assert how.weight_decay == used
        assert (how.steps, how.warmup_steps) == (STEPS, 1)
    epochs = replace(SETTINGS, max_steps=None, epochs=2.0, batch_size=8, gradient_accumulation=2)
    assert _fine_tuning(40, "lora", epochs, seed=1).steps == 6


def test_the_loss_is_that_of_the_responses_alone(place: Path, tmp_path: Path) -> None:
    """The first step's loss against the cross entropy of each response's tokens, row by row, without padding."""
    tokenizer, model = load_tokenizer(place / "lm"), load_causal_lm(place / "lm", device=CPU)
    losses = []
    for row in encode_rows(tokenizer, ROWS, 64).examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        losses += [-logits[i - 1, t].item() for i, t in enumerate(row.input_ids) if row.labels[i] != -100]
    seen: list[float] = []
    train_tiny(
        place / "lora",
        tmp_path,
        batch_size=len(ROWS),
        max_steps=1,
        log=lambda m, s: seen.extend([m["train_loss"]] if "train_loss" in m else []),
    )
    assert seen == [pytest.approx(sum(losses) / len(losses), rel=1e-4)]  # logged to four places


def test_rows_without_a_response_left_are_skipped_and_counted(place: Path, tmp_path: Path) -> None:
    lengths = [len(e.input_ids) for e in encode_rows(load_tokenizer(place / "lm"), ROWS, 64).examples]
    shortest = min(lengths) - 2  # a prompt and not one token of its response
    with pytest.raises(ValueError, match="max_length"):
        train_tiny(place / "lora", tmp_path, max_length=shortest)
    trained = train_tiny(place / "lora", tmp_path, max_length=shortest + 1, max_steps=1).meta["trained"]
    assert trained["num_rows"] + trained["num_skipped"] == len(ROWS)
    assert trained["num_rows"] > 0


def test_what_cannot_be_trained_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter here") as e:
        train_adapter(place / "lm", tmp_path, rows=ROWS, settings=SETTINGS, seed=1)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="lower the learning rate"):
        train_tiny(place / "lora", tmp_path, lr=1e30)


def test_activations_that_are_computed_again_come_to_the_same_curve(place: Path, tmp_path: Path) -> None:
    """The MLPs' forward passes are counted: two of each for a backward pass, where nothing of them is kept."""
    curves, passes = [], []
    for again in (False, True):
        curve: list[float] = []
        calls = 0

        def count(module: Any, args: Any) -> None:
            nonlocal calls
            calls += type(module).__name__ == "LlamaMLP"

        with torch.nn.modules.module.register_module_forward_pre_hook(count):
            train_tiny(
                place / "lora_null_v2",
                tmp_path / str(again),
                gradient_checkpointing=again,
                log=lambda m, _, to=curve: to.extend([m["train_loss"]] if "train_loss" in m else []),
            )
        curves.append(curve)
        passes.append(calls)
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert len(curves[0]) == STEPS
    assert passes[1] - passes[0] == 2 * STEPS
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


@pytest.mark.parametrize(("stored", "kept"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_a_base_in_bfloat16_stays_in_it_and_its_adapter_is_trained_in_float32(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, kept: torch.dtype
) -> None:
    base = tmp_path / "base"
    shutil.copytree(place / "lm", base / "lm")
    shutil.copy(place / "text.txt", base)
    load_causal_lm(place / "lm", device=CPU).to(stored).save_pretrained(base / "lm")
    adapter = write_adapter_of(base, base / "adapter")
    seen: list[tuple[set[torch.dtype], set[torch.dtype]]] = []
    original = fine_tuning._AdapterTrainer.create_optimizer

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = list(self.model.parameters())
        seen.append(({p.dtype for p in parameters if not p.requires_grad and p.ndim > 1 and len(p) > RANK}, set()))
        seen[-1][1].update(p.dtype for p in parameters if p.requires_grad)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(fine_tuning._AdapterTrainer, "create_optimizer", watched)
    losses: list[float] = []
    train_tiny(adapter, tmp_path / "out", log=lambda m, _: losses.append(m.get("train_loss", losses[-1:] and 0.0)))
    assert seen == [({kept}, {torch.float32})]
    assert losses[STEPS - 1] < losses[0]


def test_no_pickle_is_left_and_none_is_trusted_on_the_way(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train_tiny(place / "lora_null_v2", tmp_path, log=kill_at(4))
    trusted: list[Any] = []
    original = torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        trusted.append(kwargs.get("weights_only"))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    folder = train_tiny(place / "lora_null_v2", tmp_path).folder
    assert trusted
    assert all(trusted)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors", ".md"}
    assert load_file(folder / "adapter_model.safetensors")
    assert json.loads((folder / "nullspace.json").read_text())["trained"]
