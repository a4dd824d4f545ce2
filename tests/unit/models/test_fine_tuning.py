"""Rows as the Trainer gets them, and which checkpoint is taken up."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.language_models import tiny_model
from transformers import TrainingArguments

from subspacelab.core.files import write_json
from subspacelab.models.adaptable import target_linears
from subspacelab.models.fine_tuning import (
    IGNORED,
    STATE,
    SUMS,
    Example,
    FineTuning,
    _AdapterTrainer,
    _arguments,
    _sums,
    collate,
    encode_example,
    newest_checkpoint,
    num_steps,
    require_plain_launch,
)
from subspacelab.models.lora_factors import Factors
from subspacelab.models.lora_model import LiveAdapter, attach_adapter


def test_the_loss_lies_on_the_response_and_its_end_alone() -> None:
    example = encode_example([5, 6, 7], [8, 9], 1, 10)
    assert example == Example([5, 6, 7, 8, 9, 1], [IGNORED] * 3 + [8, 9, 1])
    assert encode_example([5, 6, 7], [8, 9], None, 10) == Example([5, 6, 7, 8, 9], [IGNORED] * 3 + [8, 9])


def test_a_long_row_is_cut_and_one_without_a_response_left_is_none() -> None:
    assert encode_example([5, 6, 7], [8, 9], 1, 4) == Example([5, 6, 7, 8], [IGNORED] * 3 + [8])
    assert encode_example([5, 6, 7], [8, 9], 1, 3) is None
    assert encode_example([5, 6, 7], [8, 9], 1, 2) is None


def test_padding_has_neither_attention_nor_loss() -> None:
    batch = collate([Example([5, 6, 8], [IGNORED, IGNORED, 8]), Example([5], [5])], pad=0)
    assert batch.input_ids.tolist() == [[5, 6, 8], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 8], [5, IGNORED, IGNORED]]


def test_what_pads_does_not_change_the_loss() -> None:
    model = tiny_model()
    rows = [encode_example([5, 6, 7], [8, 9, 10, 11], 1, 20), encode_example([12], [13], 1, 20)]
    examples = [row for row in rows if row is not None]
    with torch.no_grad():
        losses = [model(**vars(collate(examples, pad=pad))).loss.item() for pad in (0, 9)]
        apart = [model(**vars(collate([e], pad=0))).loss.item() for e in examples]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx((5 * apart[0] + 2 * apart[1]) / 7, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "how", "epochs", "steps"),
    [(10, (4, 1), 1, 3), (10, (4, 2), 1, 2), (10, (4, 2), 3, 6), (8, (4, 1), 0.5, 1), (1, (8, 8), 1, 1)],
)
def test_steps_of_so_many_passes(rows: int, how: tuple[int, int], epochs: float, steps: int) -> None:
    assert num_steps(rows, how, epochs) == steps


def test_the_newest_whole_checkpoint_is_taken_and_halves_of_later_ones_go(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 20, 100, 101, 102):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / STATE).write_text("{}")
        if step != 102:  # killed before the end
            write_json(folder / SUMS, _sums(folder))
    (tmp_path / "checkpoint-100" / "adapter_model.safetensors").write_bytes(b"wei\0\0ts")  # damaged since
    (tmp_path / "checkpoint-101" / STATE).unlink()
    (tmp_path / "checkpoint-best").mkdir()  # a person's
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-9", "checkpoint-best"]


@pytest.fixture
def live() -> LiveAdapter:
    """An adapter on a tiny model, to make a Trainer of."""
    model = tiny_model()
    meta = {"rank": 2, "down_frozen": False}
    factors = {name: Factors(torch.zeros(len(w), 2), torch.ones(2, w.shape[1])) for name, w in weights(model).items()}
    return attach_adapter(model, factors, meta)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: linear.weight for name, linear in target_linears(model).items()}


HOW = FineTuning(1, 1e-3, 2, 1, 0, 0.0, 1, 0)


def test_one_process_sees_one_gpu(live: LiveAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers counts on a host of four; `DataParallel` would take them all."""
    arguments = _arguments(live, tmp_path, HOW)
    assert arguments.n_gpu <= 1
    monkeypatch.setattr(arguments, "_n_gpu", 4)
    assert TrainingArguments.n_gpu.fget(arguments) == 4
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 2
    trainer = _AdapterTrainer(live, [Example([5, 8], [IGNORED, 8])], arguments, 0)
    assert not isinstance(trainer._wrap_model(trainer.model), torch.nn.DataParallel)


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp8"])
def test_accelerates_configuration_does_not_change_the_precision(
    live: LiveAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    trainer = _AdapterTrainer(live, [Example([5, 8], [IGNORED, 8])], _arguments(live, tmp_path, HOW), 0)
    assert trainer.accelerator.mixed_precision == "no"


def test_a_model_that_cannot_compute_activations_again_is_named(
    live: LiveAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = replace(HOW, checkpointing=True)
    assert _arguments(live, tmp_path, how).activation_checkpointing
    monkeypatch.setattr(live.model.get_base_model(), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="gradient_checkpointing: LlamaForCausalLM cannot"):
        _arguments(live, tmp_path, how)


def test_a_launch_that_would_spread_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_plain_launch()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="configured for FSDP, .* launch with `accelerate launch --multi_gpu`"):
        require_plain_launch()
