"""Trains an adapter on rows {query, response}; a killed training continues to the same bytes."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from subspacelab.checkpoints import read_tensors
from subspacelab.core.callbacks import Advance, Log, Progress, no_log, no_progress
from subspacelab.core.devices import choose_device, processes
from subspacelab.core.files import read_json, remove_folder, remove_partials_of, sha256_file, through_links, write_json
from subspacelab.core.ownership import require_apart, require_own_entries, require_same_job, sole_writer
from subspacelab.data.instructions import Instruction
from subspacelab.models.causal_lm import kept_dtype, load_tokenizer
from subspacelab.models.fine_tuning import (
    STATE,
    FineTuning,
    checkpoint_names,
    fine_tune,
    num_steps,
    require_plain_launch,
)
from subspacelab.models.lora_factors import Factors
from subspacelab.models.lora_folder import (
    FILES,
    INITIAL,
    META,
    PREFIX,
    WEIGHTS,
    base_of,
    is_intact,
    read_meta,
    read_schema,
    require_own_config,
    write_adapter,
)
from subspacelab.models.lora_model import LiveAdapter, open_adapter
from subspacelab.models.tokens import padding_id, require_readable
from subspacelab.nullspace.card import card_of
from subspacelab.nullspace.config import TrainSettings
from subspacelab.nullspace.encoding import Examples, encode_rows
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.paths import CHECKPOINTS, TRAINED, require_adapter

JOB = "job.json"
# Settings that change nothing in the result, or that are told apart.
ELSEWHERE = (
    "data",
    "device",
    "save_steps",
    "gradient_checkpointing",
    "fsdp",
    "knowledge",
    "lr_by_method",
    "rate_factors",
)


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished training."""

    folder: Path
    """Folder of the trained adapter."""
    meta: dict[str, Any]
    """The content of its `nullspace.json`."""

    @property
    def metrics(self) -> dict[str, float]:
        """The main numbers of the training."""
        names = ("steps", "final_loss", "trainable_parameters", "all_parameters", "num_rows", "num_skipped")
        return {name: float(self.meta["trained"][name]) for name in names}


def train_adapter(
    adapter: Path,
    output_dir: Path,
    *,
    rows: Sequence[Instruction],
    settings: TrainSettings,
    seed: int,
    base: str | None = None,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> TrainedAdapter:
    """Trains the adapter in `adapter` on `rows` and writes it to `output_dir/ft`, whole or not at all.

    Checkpoints are kept in `output_dir/checkpoints` until the end. The same training, started again, continues from the
    last complete one; a finished one whose bytes are unchanged is returned. `log(metrics, step)` receives the curves.
    ValueError, in one line, before anything changes, if `adapter` holds no adapter, if `output_dir` has folders of
    these names from another training, if another process is at work there, or if settings do not fit the rows; later,
    only if the loss is no longer finite.
    """
    require_plain_launch()
    meta = read_meta(require_adapter(adapter))
    source = base_of(meta, base)
    finished, work_dir = output_dir / TRAINED, output_dir / CHECKPOINTS
    work_dir = through_links(work_dir)
    for place in (finished, work_dir):
        require_apart(place, [adapter, source.folder, Path(settings.data)])
    job = _job(adapter, rows, settings, seed)
    device = choose_device(settings.device)
    group = processes(cpu=device.type == "cpu")
    shares = _shares(settings, meta["method"], group.count, device)
    with sole_writer(finished) if group.is_main else nullcontext():
        if group.is_main:
            _require_own(finished, work_dir, job)
        group.wait()  # what is refused is refused before any process begins
        if _is_finished(finished, job, meta):
            group.wait()  # until every process has looked
        else:
            tokenizer = load_tokenizer(source.folder)
            given = encode_rows(tokenizer, rows, settings.max_length)
            how = _fine_tuning(len(given.examples), meta["method"], settings, seed)
            dtype = kept_dtype(source.folder)
            live = open_adapter(adapter, base=base, trainable=True, device=device, dtype=dtype, shares=shares)
            ids = [example.input_ids for example in given.examples]
            require_readable(live.model.config, tokenizer, ids, remedy="lower `max_length`")
            if group.is_main:
                write_json(work_dir / JOB, asdict(job))  # only now: what is refused above leaves nothing behind
            group.wait()
            counts, pad = _count_parameters(live), padding_id(live.model.config, tokenizer)
            with progress(f"train {meta['method']}", how.steps, "steps") as advance:
                last = fine_tune(live, given.examples, work_dir, how=how, pad=pad, log=_counting(log, advance))
            if group.is_main:
                trained = counts | _trained(given, how, last) | asdict(job)
                now = live.meta | {"trained": trained}
                write_adapter(finished, _factors(live, adapter, last), now, card_of(now))
        if group.is_main and work_dir.exists():
            remove_folder(work_dir)
        group.wait()
    return TrainedAdapter(finished, read_meta(finished))


def _shares(settings: TrainSettings, method: str, num_processes: int, device: torch.device) -> int:
    """Number of processes that share the base.

    ValueError for a single process, for a method that changes the base's weights, and for another device than the one
    that transformers spreads a model over, which cannot be chosen.
    """
    if not settings.fsdp:
        return 1
    if num_processes == 1:
        raise ValueError("fsdp: there is one process only; start several with `accelerate launch`")
    if method_of(method).moves_weight:
        raise ValueError(
            f"fsdp: {method} changes the base's weights at its start and needs them whole; leave `fsdp` out"
        )
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if device.type != place:
        raise ValueError(f"fsdp: a base that processes share lies on {place} here; set `device` to {place}")
    return num_processes


def _job(adapter: Path, rows: Sequence[Instruction], settings: TrainSettings, seed: int) -> "_Job":
    text = json.dumps([asdict(row) for row in rows])
    content = {key: value for key, value in asdict(settings).items() if key not in ELSEWHERE}
    digests = [sha256_file(adapter / name) for name in (META, WEIGHTS, INITIAL) if (adapter / name).exists()]
    inputs = {"rows": _digest(text), "adapter": _digest(*digests)}
    return _Job(content | inputs | {"seed": seed}, {"rows": settings.data, "adapter": str(adapter)})


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()


@dataclass(frozen=True)
class _Job:
    """What identifies a training; its paths are not part of it."""

    job: dict[str, Any]
    """Settings, seed, and the digests of rows and adapter: equal jobs give equal bytes."""
    names: dict[str, str]
    """Names of rows and adapter, for messages."""

    def told(self, other: "_Job") -> dict[str, Any]:
        """The job for a message, with names beside the digests in which it differs from the other."""
        named = {key: f"{self.names.get(key)} ({str(self.job.get(key))[:8]})" for key in self.names}
        return self.job | {key: name for key, name in named.items() if self.job.get(key) != other.job.get(key)}


@dataclass(frozen=True)
class _Trained(_Job):
    """The required keys of `nullspace.json` on a training; there are more."""

    steps: int
    final_loss: float
    trainable_parameters: int
    all_parameters: int
    num_rows: int
    num_skipped: int


def _require_own(finished: Path, work_dir: Path, job: _Job) -> None:
    """ValueError, naming it, if one of these folders, which will be replaced, holds anything but this training."""
    require_own_entries(finished, FILES, "a trained adapter")
    if finished.is_dir() and any(finished.iterdir()):
        trained = read_meta(finished)["trained"]
        if not trained:
            raise ValueError(f"{finished}: holds an adapter as it was built, which would be lost; give another place")
        _require_same(finished, read_schema(_Trained, trained, finished / META, "train again elsewhere"), job)
        require_own_config(finished)
    for place in (finished, work_dir, work_dir / JOB):
        remove_partials_of(place)
    begun = (work_dir / JOB).is_file()
    require_own_entries(work_dir, [JOB, *checkpoint_names(work_dir)] if begun else [], "this training's checkpoints")
    if begun:
        path = work_dir / JOB
        _require_same(work_dir, read_schema(_Job, read_json(path), path, "move its folder away"), job)


def _require_same(place: Path, found: _Job, job: _Job) -> None:
    if found.job != job.job:
        require_same_job(place, found.told(job), job.told(found))


def _is_finished(folder: Path, job: _Job, built: Mapping[str, Any]) -> bool:
    """Whether this training of the adapter `built` is complete and undamaged; a damaged one is trained again."""
    if not (folder / META).is_file():
        return False
    meta = read_meta(folder)
    if not meta["trained"] or meta["trained"]["job"] != job.job or not is_intact(folder, meta):
        return False
    return {**built, "trained": meta["trained"], "files": meta["files"]} == meta


def _fine_tuning(num_rows: int, method: str, settings: TrainSettings, seed: int) -> FineTuning:
    how = (settings.batch_size, settings.gradient_accumulation)
    steps = settings.max_steps or num_steps(num_rows, how, settings.epochs)
    decay = method_of(method).default_weight_decay if settings.weight_decay is None else settings.weight_decay
    return FineTuning(
        steps=steps,
        learning_rate=settings.lr,
        batch_size=settings.batch_size,
        gradient_accumulation=settings.gradient_accumulation,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=decay,
        save_steps=settings.save_steps,
        seed=seed,
        checkpointing=settings.gradient_checkpointing,
        shared_base=settings.fsdp,
    )


def _counting(log: Log, advance: Advance) -> Log:
    seen = 0

    def counted(metrics: Mapping[str, float], step: int) -> None:
        nonlocal seen
        advance(step - seen)
        seen = step
        log(metrics, step)

    return counted


def _count_parameters(live: LiveAdapter) -> dict[str, int]:
    tied = live.model.get_base_model().all_tied_weights_keys  # of a shared base they are counted as others
    named = live.model.get_base_model().named_parameters()
    parameters = [parameter for name, parameter in named if name not in tied]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {"trainable_parameters": trainable, "all_parameters": sum(p.numel() for p in parameters)}


def _trained(given: Examples, how: FineTuning, last: Path) -> dict[str, Any]:
    """Facts about the training for `nullspace.json`; the final loss is the mean of the last tenth of the steps."""
    losses = [entry["loss"] for entry in read_json(last / STATE)["log_history"] if "loss" in entry]
    return {
        "steps": how.steps,
        "weight_decay": how.weight_decay,
        "final_loss": fmean(losses[-max(1, len(losses) // 10) :]),
        "num_rows": len(given.examples),
        "num_skipped": given.num_skipped,
    }


def _factors(live: LiveAdapter, adapter: Path, last: Path) -> dict[str, Factors]:
    """The factors of the last checkpoint, whose tensors are whole even if the model was spread over processes.

    RuntimeError unless a frozen B is bit-equal to the built one.
    """
    trained, built = read_tensors(last / WEIGHTS)[0], read_tensors(adapter / WEIGHTS)[0]
    factors = {}
    for name in live.meta["targets"]:
        down, up = (f"{PREFIX}{name}.{kind}.weight" for kind in ("lora_A", "lora_B"))
        if live.down_frozen and not torch.equal(trained[down], built[down]):
            raise RuntimeError(f"{name}: the frozen B is not the one that was built")
        factors[name] = Factors(trained[up], trained[down], *live.initial.get(name, (None, None)))
    return factors
