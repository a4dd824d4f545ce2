"""Every layer's start, computed block by block; the results of a block are on disk before the next block is read."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.files import read_json, write_json
from subspacelab.data.windows import Windows
from subspacelab.models.block_stream import PROBE, BlockStream, with_adapter
from subspacelab.models.causal_lm import require_no_look_ahead
from subspacelab.models.hidden_states import StatesOnDisk, open_states
from subspacelab.models.lora_factors import Factors, prepare_corda
from subspacelab.nullspace.calibration import CalibrationBatches, calibrate_block, shared_inputs
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.inits import Method
from subspacelab.nullspace.starts import LayerReport, input_starts, plain_starts

Starts = dict[str, tuple[Factors, LayerReport]]


@dataclass(frozen=True)
class Task:
    """A base model and the adapter to be built on it."""

    model_folder: Path
    """Folder of the base model."""
    stream: BlockStream
    """Blocks of the base model."""
    linears: dict[str, nn.Linear]
    """The layers to adapt."""
    method: Method
    """The method that initialises them."""
    rank: int
    """Rank of every layer's adapter."""
    windows: Windows | None
    """Calibration text; None without calibration."""
    ids: Tensor
    """Tokens [1, length] on which the start is compared with the base."""
    settings: BuildSettings
    """Batch size, and where hidden states are kept."""
    progress: Progress = no_progress
    """Function that opens a progress bar."""


@dataclass
class Probes:
    """Hidden states of a few tokens on their way through the blocks."""

    watch: Tensor
    """States of two windows that differ only in their last token: they must agree before it."""
    base: Tensor
    """States of the tokens on which the start is compared with the base."""
    start: Tensor
    """States of the same tokens in the model with the adapter."""


class Record:
    """Results of the finished blocks in a folder: one file of tensors and one of reports per block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def num_blocks(self) -> int:
        """Number of finished blocks."""
        return next(i for i in count() if not self._file(i, "json").is_file())

    def write(self, index: int, starts: Starts, probes: Probes) -> None:
        """Stores the starts of a block, the probes after it, and the state of the random numbers."""
        tensors = {f"{name}.A": f.A for name, (f, _) in starts.items()}
        tensors |= {f"{name}.B": f.B for name, (f, _) in starts.items()}
        tensors |= {f"probe.{name}": states for name, states in vars(probes).items()}
        tensors |= {f"chance.{i}": state for i, state in enumerate(_chance())}
        write_tensors(self._file(index, "safetensors"), tensors)
        write_json(self._file(index, "json"), [asdict(report) for _, report in starts.values()])

    def read(self, index: int, *, moved: bool) -> Starts:
        """The starts of a block; `moved`: they were subtracted from W."""
        tensors, _ = read_tensors(self._file(index, "safetensors"))
        reports = [LayerReport.of(fields) for fields in read_json(self._file(index, "json"))]
        pairs = {r.module: (tensors[f"{r.module}.A"], tensors[f"{r.module}.B"]) for r in reports}
        return {r.module: (Factors(*pairs[r.module] * (2 if moved else 1)), r) for r in reports}

    def resume(self, device: torch.device) -> Probes:
        """The probes after the last finished block; also restores the state of the random numbers."""
        tensors, _ = read_tensors(self._file(self.num_blocks - 1, "safetensors"))
        torch.set_rng_state(tensors["chance.0"])
        if "chance.1" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["chance.1"])
        names = [key.removeprefix("probe.") for key in tensors if key.startswith("probe.")]
        return Probes(**{name: tensors[f"probe.{name}"].to(device) for name in names})

    def _file(self, index: int, kind: str) -> Path:
        return self.folder / f"block-{index}.{kind}"


def _chance() -> list[Tensor]:
    """States of torch's global generators, PEFT's only source of randomness."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class BlockStarts:
    """The results of all blocks."""

    factors: dict[str, Factors]
    """Module -> its factors, in the model's order."""
    layers: list[LayerReport]
    """Report of each layer."""
    before: Tensor
    """Logits of the base on the task's tokens."""
    after: Tensor
    """Logits of the model with the adapter on the same tokens."""


def find_starts(task: Task, folder: Path) -> BlockStarts:
    """Factors and report of every layer; blocks whose results are in `folder` are not computed again.

    Unless the hidden states are on disk, the windows pass the finished blocks once more. ValueError for a model whose
    tokens see later ones, for NaN among a layer's inputs, and for a layer that takes no part in a forward pass.
    """
    stream, record = task.stream, Record(folder)
    done = record.num_blocks
    batches = _batches(task, folder)
    with stream.ends():
        probes = record.resume(stream.device) if done else _embed_probes(task)
        if batches and not (isinstance(batches.states, StatesOnDisk) and batches.states.resume(done)):
            batches.embed()
    first = min(done, batches.states.depth) if batches else done
    total = (len(stream) - first) * sum(map(len, batches.rows)) if batches else 0
    with (
        task.progress("calibrating", total, "windows") as advance,
        task.progress("starts", len(task.linears), "layers") as solved,
    ):
        for index in range(first, len(stream)):
            with stream.loaded(index):
                if index >= done:
                    starts = dict(_block_starts(task, index, probes, batches, advance))
                    _pass_probes(task, index, probes, starts)
                    record.write(index, starts, probes)
                    solved(len(starts))
                elif batches:
                    batches.run(index, advance=advance)
            if batches:
                batches.states.advance()
    moved = task.method.moves_weight
    found = dict(start for index in range(len(stream)) for start in record.read(index, moved=moved).items())
    with stream.ends():
        before, after = (stream.logits(states).cpu().double() for states in (probes.base, probes.start))
    factors = {name: found[name][0] for name in task.linears}
    return BlockStarts(factors, [found[name][1] for name in task.linears], before, after)


def _batches(task: Task, folder: Path) -> CalibrationBatches | None:
    if task.windows is None:
        return None
    config, dtype = task.stream.model.config.get_text_config(), task.stream.model.dtype
    num_bytes = task.windows.input_ids.numel() * config.hidden_size * dtype.itemsize
    states = open_states(task.settings.offload, num_bytes, task.stream.device, folder)
    return CalibrationBatches(task.stream, task.windows, task.settings.batch_size, states)


def _embed_probes(task: Task) -> Probes:
    ids = PROBE % task.stream.model.config.get_text_config().vocab_size
    watch, base = (task.stream.embed(given, torch.ones_like(given, dtype=torch.bool)) for given in (ids, task.ids))
    return Probes(watch, base, base)


def _run(task: Task, index: int, states: Tensor) -> Tensor:
    """Runs probes, which have no padding, through a block."""
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    return task.stream.run(index, states, mask, to_logits=True)


def _block_starts(
    task: Task, index: int, probes: Probes, batches: CalibrationBatches | None, advance: Any
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """Name, factors and report of each layer of a block; also runs the windows through it."""
    linears = task.stream.within(index, task.linears)
    model = task.stream.model

    def watch() -> None:
        probes.watch = require_no_look_ahead(task.model_folder, model, lambda: _run(task, index, probes.watch))

    inputs = shared_inputs(linears, watch)
    if batches is None:
        yield from plain_starts(linears, task.method, task.rank)
        return
    if task.method.peft_init == "corda" and linears:
        layers = nn.ModuleList(linears.values())  # by themselves: PEFT takes the device of the first parameter
        prepare_corda(layers, [str(i) for i in range(len(layers))], task.rank, lambda: _single_windows(batches, index))
    moments = calibrate_block(batches, index, inputs, advance)
    for shared in inputs:
        yield from input_starts(linears, task.method, task.rank, shared, moments.pop(shared.name))


def _single_windows(batches: CalibrationBatches, index: int) -> None:
    """Runs the calibration windows through a block, one at a time and without padding, as CorDA's hooks need them."""
    for batch, part in enumerate(batches.parts):
        if part < 2:  # not held out
            for states, mask in zip(batches.states.before(batch), batches.mask(batch), strict=True):
                kept = states[mask.to(states.device)][None]
                batches.stream.run(index, kept, torch.ones(kept.shape[:2], dtype=torch.bool))


def _pass_probes(task: Task, index: int, probes: Probes, starts: Mapping[str, tuple[Factors, Any]]) -> None:
    """Runs the task's tokens through the original block, and through the block with its adapter."""
    probes.base, alone = _run(task, index, probes.base), probes.start
    with with_adapter(task.linears, {name: factors for name, (factors, _) in starts.items()}):
        probes.start = _run(task, index, alone)
