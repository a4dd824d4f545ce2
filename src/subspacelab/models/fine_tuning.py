"""Fine-tuning of an adapter by transformers' Trainer; an interrupted run continues from its last checkpoint."""

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from subspacelab.core.callbacks import Log
from subspacelab.core.devices import lost_processes_named
from subspacelab.core.files import read_json, sha256_file, write_json
from subspacelab.models.causal_lm import quiet
from subspacelab.models.lora_model import ADAPTER, LiveAdapter, require_trainable, set_trainable

IGNORED = -100  # label of a position that has no loss
STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint
SUMS = "sha256.json"  # what we add: the digest of every file in it
OTHER_WAYS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""Settings of `accelerate config` that spread a model over processes and cannot train an adapter on a frozen base."""
CURVES = {"loss": "train_loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


@dataclass(frozen=True)
class Example:
    """One row as token ids."""

    input_ids: list[int]
    """Prompt and response."""
    labels: list[int]
    """The response's ids at their positions, `IGNORED` on the prompt."""


@dataclass(frozen=True)
class Batch:
    """Examples of one length, padded on the right."""

    input_ids: Int[Tensor, "batch length"]
    """Token ids."""
    attention_mask: Bool[Tensor, "batch length"]
    """False on padding."""
    labels: Int[Tensor, "batch length"]
    """`IGNORED` on prompt and padding."""


@dataclass(frozen=True)
class FineTuning:
    """Settings of a training; gradients are clipped at norm 1."""

    steps: int
    """Optimizer steps."""
    learning_rate: float
    """Peak learning rate of AdamW; a cosine schedule lowers it to 0."""
    batch_size: int
    """Examples per forward pass, over all processes."""
    gradient_accumulation: int
    """Forward passes per optimizer step."""
    warmup_steps: int
    """Steps during which the learning rate rises."""
    weight_decay: float
    """AdamW's decoupled weight decay."""
    save_steps: int
    """Steps between checkpoints."""
    seed: int
    """Seed of the order of the examples."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward pass instead of kept."""
    shared_base: bool = False
    """Whether the processes share the base (FSDP). The Trainer then saves only the adapter, at the end, so that a
    killed training starts again."""


def encode_example(prompt: Sequence[int], response: Sequence[int], eos: int | None, max_length: int) -> Example | None:
    """Prompt, response and end token, cut at `max_length`; None if no token of the response is left."""
    answer = [*response] if eos is None else [*response, eos]
    ids = [*prompt, *answer][:max_length]
    labels = ([IGNORED] * len(prompt) + answer)[:max_length]
    return Example(ids, labels) if len(ids) > len(prompt) else None


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pads to the longest example, on the right."""
    length = max(len(e.input_ids) for e in examples)

    def rows(lists: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in lists])

    mask = rows([[1] * len(e.input_ids) for e in examples], 0).bool()
    return Batch(rows([e.input_ids for e in examples], pad), mask, rows([e.labels for e in examples], IGNORED))


def num_steps(num_examples: int, how: tuple[int, int], epochs: float) -> int:
    """Optimizer steps of `epochs` over the examples, with (batch_size, gradient_accumulation)."""
    batch_size, accumulation = how
    return max(1, math.ceil(math.ceil(math.ceil(num_examples / batch_size) / accumulation) * epochs))


def fine_tune(
    live: LiveAdapter, examples: Sequence[Example], work_dir: Path, *, how: FineTuning, pad: int, log: Log
) -> Path:
    """Trains the trainable parameters of the adapter; returns the folder of the last checkpoint, inside `work_dir`.

    Continues from the newest complete checkpoint in `work_dir`. After every optimizer step, a frozen B must be
    bit-equal to its start. `log(metrics, step)` receives loss, gradient norm and learning rate of each step, in the
    main process. ValueError if the loss is no longer finite.
    """
    with quiet():
        trainer = _AdapterTrainer(live, examples, _arguments(live, work_dir, how), pad)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Curves(log))
        if live.down_frozen:
            trainer.add_callback(_BitEqual(live))
        begun = None if how.shared_base else newest_checkpoint(work_dir)
        with lost_processes_named():
            trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    return work_dir / f"checkpoint-{how.steps}"


def newest_checkpoint(work_dir: Path) -> Path | None:
    """The last checkpoint that is complete and undamaged; later ones, which are not, are removed.

    Use it only if `work_dir` is known to belong to this training.
    """
    found = [work_dir / name for name in checkpoint_names(work_dir)]
    while found and not _is_whole(found[-1]):
        shutil.rmtree(found.pop(), ignore_errors=True)
    return found[-1] if found else None


def checkpoint_names(work_dir: Path) -> list[str]:
    """Names of the Trainer's checkpoint folders in `work_dir`, in the order of their steps."""
    names = (p.name for p in work_dir.glob("checkpoint-*") if p.is_dir())
    found = [name for name in names if re.fullmatch(r"checkpoint-\d{1,18}", name)]
    return sorted(found, key=lambda name: int(name.rpartition("-")[2]))


def _is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint have the bytes that were written."""
    try:
        sums = read_json(checkpoint / SUMS)
    except (OSError, ValueError):
        return False
    return bool(sums == _sums(checkpoint))


def _sums(checkpoint: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in checkpoint.iterdir() if p.is_file() and p.name != SUMS}


def _arguments(live: LiveAdapter, work_dir: Path, how: FineTuning) -> TrainingArguments:
    device = next(live.model.parameters()).device.type
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if how.batch_size % count:
        raise ValueError(f"batch_size {how.batch_size} is no multiple of the {count} processes; choose one")
    if how.checkpointing and not live.model.get_base_model().supports_gradient_checkpointing:
        kind = type(live.model.get_base_model()).__name__
        raise ValueError(f"gradient_checkpointing: {kind} cannot compute its activations again; leave it out")
    return _Arguments(
        output_dir=str(work_dir),
        max_steps=how.steps,
        learning_rate=how.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=how.warmup_steps,
        weight_decay=how.weight_decay,
        max_grad_norm=1.0,
        activation_checkpointing=how.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if how.checkpointing else None,
        per_device_train_batch_size=how.batch_size // count,
        gradient_accumulation_steps=how.gradient_accumulation,
        seed=how.seed,
        data_seed=how.seed,
        save_strategy="steps",
        save_steps=how.steps if how.shared_base else how.save_steps,
        save_only_model=how.shared_base,
        save_total_limit=2,  # one may be half-written when the process dies
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(),
        ddp_backend="gloo" if device == "cpu" and count > 1 else None,
        ddp_find_unused_parameters=False if count > 1 else None,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
    )


def require_plain_launch() -> None:
    """ValueError if `accelerate launch` would spread the model itself: the processes share only the rows."""
    for way in OTHER_WAYS:
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate is configured for {way}, which does not train an adapter on a frozen base; launch with"
                " `accelerate launch --multi_gpu`, each process with the whole model, or with a part of it (`fsdp`)"
            )


class _Arguments(TrainingArguments):
    """One GPU per process, and our own choice of precision, whatever the GPUs and `accelerate config` are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixed_precision = "bf16" if self.bf16 else "no"

    @property
    def n_gpu(self) -> int:
        """One: with more, the Trainer would use `DataParallel`, with other batches and losses."""
        return min(super().n_gpu, 1)


class _AdapterTrainer(Trainer):
    """The Trainer, with an optimizer over exactly the adapter's trainable parameters, also after a resume."""

    def __init__(self, live: LiveAdapter, examples: Sequence[Example], arguments: TrainingArguments, pad: int) -> None:
        self._live = live
        super().__init__(
            model=live.model,
            args=arguments,
            train_dataset=list(examples),
            data_collator=lambda rows: vars(collate(rows, pad)),
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        down = not self._live.down_frozen
        set_trainable(self._live.model, up=True, down=down)
        require_trainable(self._live.model, up=True, down=down)
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves the adapter alone, which is whole in every process: a shared base is never gathered."""
        adapter = {name: tensor for name, tensor in self.model.named_parameters() if ADAPTER in name.split(".")}
        super()._save(output_dir, state_dict=adapter)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # each process writes the state of its own generators
            if self.is_world_process_zero():
                checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                write_json(checkpoint / SUMS, _sums(checkpoint))
        except (OSError, RuntimeError, SafetensorError) as e:  # of its files each is written by another library
            folder = Path(self.args.output_dir)
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            reason = str(e).partition("\n")[0]
            raise OSError(f"{folder}: no checkpoint can be written ({reason}); free some space and run again") from e


class _Curves(TrainerCallback):
    """Passes each step's numbers on, and stops a training that has diverged."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        found = {name: float(logs[key]) for key, name in CURVES.items() if key in logs}
        if not math.isfinite(found.get("train_loss", 0.0)):
            raise ValueError(f"the loss is {found['train_loss']} at step {state.global_step}; lower the learning rate")
        if found and state.is_world_process_zero:
            self._log(found, state.global_step)


class _BitEqual(TrainerCallback):
    """Compares every frozen B with a copy of it after each optimizer step."""

    def __init__(self, live: LiveAdapter) -> None:
        self._live = live
        self._before: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = {name: f.B.detach().clone() for name, f in self._live.factors().items()}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, f in self._live.factors().items():
            if not torch.equal(f.B, self._before[name]):
                raise RuntimeError(f"{name}: the frozen B has moved in step {state.global_step + 1}")
