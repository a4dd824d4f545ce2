"""Trains an adapter on rows {query, response}; a training that was killed goes on to the same bytes."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from subspacelab.checkpoints import read_tensors
from subspacelab.data.instructions import Instruction
from subspacelab.devices import choose_device
from subspacelab.distributed import processes
from subspacelab.files import read_json, remove_folder, remove_partials_of, sha256_file, write_json
from subspacelab.models.causal_lm import load_tokenizer
from subspacelab.models.fine_tuning import STATE, FineTuning, fine_tune, num_steps
from subspacelab.models.lora_adapter import LiveAdapter, open_adapter
from subspacelab.models.lora_factors import Factors
from subspacelab.models.lora_folder import INITIAL, META, PREFIX, WEIGHTS, read_meta, write_adapter
from subspacelab.models.tokens import padding_id, require_readable
from subspacelab.nullspace.config import TrainSettings
from subspacelab.nullspace.examples import Examples, encode_rows
from subspacelab.nullspace.methods import method_of
from subspacelab.nullspace.places import CHECKPOINTS, TRAINED, base_of, require_adapter
from subspacelab.reports.progress import progress_bar

JOB = "job.json"
# Settings that change nothing in the result, or that are told apart.
ELSEWHERE = ("data", "device", "save_steps", "knowledge", "lr_by_method")

Log = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished training."""

    folder: Path
    """The trained adapter."""
    meta: dict[str, Any]
    """Contents of its `nullspace.json`."""

    @property
    def metrics(self) -> dict[str, float]:
        """The training in a few numbers."""
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
    log: Log = lambda metrics, step: None,
) -> TrainedAdapter:
    """Trains the adapter in `adapter` on `rows` and writes it to `output_dir/ft`, whole or not at all.

    Checkpoints lie in `output_dir/checkpoints` until it is finished; the same training started again goes on from the
    last whole one, and a finished one is returned as it is. `log(metrics, step)` gets the curves. ValueError, in one
    line, for a folder that holds no adapter, settings that do not fit the rows, and a loss that is no longer finite.
    """
    meta = read_meta(require_adapter(adapter))
    job = _job(adapter, rows, settings, seed)
    device = choose_device(settings.device)
    group = processes(cpu=device.type == "cpu")
    work_dir = output_dir / CHECKPOINTS
    finished = _finished(output_dir / TRAINED, job)
    group.wait()  # until every process has looked
    if finished is not None:
        if group.is_main:
            _prepare(work_dir, job, done=True)
        group.wait()
        return finished
    tokenizer = load_tokenizer(base_of(meta, base).folder)
    given = encode_rows(tokenizer, rows, settings.max_length)
    how = _fine_tuning(len(given.examples), meta["method"], settings, seed)
    live = open_adapter(adapter, base=base, trainable=True, device=device)
    ids = [example.input_ids for example in given.examples]
    require_readable(live.model.config, tokenizer, ids, remedy="lower --max-length")
    if group.is_main:
        _prepare(work_dir, job, done=False)  # only now: what is refused above leaves nothing behind
    group.wait()
    counts = _count_parameters(live)  # before FSDP, if any, leaves each process a part of them
    pad = padding_id(live.model.config, tokenizer)
    with progress_bar(f"train {meta['method']}", total=how.steps, unit="steps") as advance:
        last = fine_tune(live, given.examples, work_dir, how=how, pad=pad, log=_counting(log, advance))
    if group.is_main:
        trained = counts | _trained(given, how, last) | {"data": settings.data, "job": job}
        write_adapter(output_dir / TRAINED, _factors(live, adapter, last), live.meta | {"trained": trained})
        remove_folder(work_dir)
    group.wait()
    return TrainedAdapter(output_dir / TRAINED, read_meta(output_dir / TRAINED))


def _job(adapter: Path, rows: Sequence[Instruction], settings: TrainSettings, seed: int) -> dict[str, Any]:
    """What a training is, as JSON; where it runs is left out."""
    text = json.dumps([asdict(row) for row in rows])
    content = {key: value for key, value in asdict(settings).items() if key not in ELSEWHERE}
    digests = {name: sha256_file(adapter / name) for name in (META, WEIGHTS, INITIAL) if (adapter / name).exists()}
    job = {"settings": content, "seed": seed, "rows": hashlib.sha256(text.encode()).hexdigest(), "adapter": digests}
    return dict(json.loads(json.dumps(job)))


def _finished(folder: Path, job: dict[str, Any]) -> TrainedAdapter | None:
    if not (folder / META).is_file():
        return None
    meta = read_meta(folder)
    same = isinstance(meta["trained"], dict) and meta["trained"].get("job") == job
    return TrainedAdapter(folder, meta) if same else None


def _prepare(work_dir: Path, job: dict[str, Any], *, done: bool) -> None:
    """Leaves the checkpoints of the same training, unless it is done, and takes those of another away to begin.

    Checkpoints without a job are what a removal has left that was cut short.
    """
    for place in (work_dir, work_dir.with_name(TRAINED)):
        remove_partials_of(place)
    path = work_dir / JOB
    same = path.is_file() and read_json(path) == job
    if same == done or not path.is_file():
        remove_folder(work_dir)
    if not same and not done:
        write_json(path, job)


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
    )


def _counting(log: Log, advance: Callable[[float], None]) -> Log:
    seen = 0

    def counted(metrics: Mapping[str, float], step: int) -> None:
        nonlocal seen
        advance(step - seen)
        seen = step
        log(metrics, step)

    return counted


def _count_parameters(live: LiveAdapter) -> dict[str, int]:
    parameters = list(live.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {"trainable_parameters": trainable, "all_parameters": sum(p.numel() for p in parameters)}


def _trained(given: Examples, how: FineTuning, last: Path) -> dict[str, Any]:
    """How it was trained, for `nullspace.json`; the final loss is the mean of the last tenth of the steps."""
    losses = [entry["loss"] for entry in read_json(last / STATE)["log_history"] if "loss" in entry]
    return {
        "steps": how.steps,
        "weight_decay": how.weight_decay,
        "final_loss": fmean(losses[-max(1, len(losses) // 10) :]),
        "num_rows": len(given.examples),
        "num_skipped": given.num_skipped,
    }


def _factors(live: LiveAdapter, adapter: Path, last: Path) -> dict[str, Factors]:
    """The factors of the last checkpoint, whose tensors are whole however the model was spread over processes.

    RuntimeError unless a frozen B is to the last bit the one that was built.
    """
    trained, built = read_tensors(last / WEIGHTS)[0], read_tensors(adapter / WEIGHTS)[0]
    factors = {}
    for name in live.meta["targets"]:
        down, up = (f"{PREFIX}{name}.{kind}.weight" for kind in ("lora_A", "lora_B"))
        if live.down_frozen and not torch.equal(trained[down], built[down]):
            raise RuntimeError(f"{name}: the frozen B is not the one that was built")
        factors[name] = Factors(trained[up], trained[down], *live.initial.get(name, (None, None)))
    return factors
