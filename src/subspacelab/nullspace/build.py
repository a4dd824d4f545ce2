"""Builds an adapter: text in, second moments, a start per layer, and an ordinary PEFT folder out."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subspacelab.checkpoints import Source
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.devices import choose_device
from subspacelab.linalg.null_space import null_space
from subspacelab.models.lora_factors import Factors
from subspacelab.models.lora_folder import CONFIG, INITIAL, META, WEIGHTS, base_digest, write_adapter
from subspacelab.nullspace.calibration import (
    Moments,
    SharedInput,
    calibrate,
    in_passes,
    moment_bytes,
    require_enough_tokens,
    shared_inputs,
    split_windows,
)
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.layer_report import LayerReport, report_input, report_layer, summarise
from subspacelab.nullspace.methods import Method, method_of
from subspacelab.reports.progress import progress_bar

START_TOKENS = 256
"""Tokens on which the model with the adapter is compared with the base."""


@dataclass(frozen=True)
class Built:
    """An adapter that was built."""

    folder: Path
    """Where it lies."""
    meta: dict[str, Any]
    """The contents of its `nullspace.json`."""
    layers: list[LayerReport]
    """A report per layer, in the model's order."""
    notes: list[str]
    """What a person should know, such as a text shorter than was asked for."""


@dataclass(frozen=True)
class Task:
    """A base model and what is to be built on it."""

    model: Any
    """The base model."""
    linears: dict[str, nn.Linear]
    """The layers that get an adapter."""
    method: Method
    """How they start."""
    rank: int
    """Rank of each."""
    windows: Windows | None
    """Calibration text; None without calibration."""
    settings: BuildSettings
    """Batch size, and whether few tokens will do."""


def build_adapter(source: Source, folder: Path, *, method: str, rank: int, seed: int, settings: BuildSettings) -> Built:
    """Builds an adapter of `rank` on the checkpoint `source` and writes it to `folder`, whole or not at all.

    An adapter that stands there is replaced. ValueError, in one line: a folder of other things, too few calibration
    tokens, a rank larger than a layer, targets that match nothing, NaN among a layer's inputs, and whatever
    reading the model or the text refuses.
    """
    from subspacelab.models.causal_lm import load_causal_lm, target_linears
    from subspacelab.models.lora_adapter import attach_adapter
    from subspacelab.models.lora_start import seeded

    chosen = method_of(method)
    _require_place(folder)
    if chosen.needs_calibration and settings.calib_dataset is None:
        raise ValueError(f"calib_dataset: {method} starts from calibration inputs; name a text")
    model = load_causal_lm(source.folder, device=choose_device(settings.device))
    linears = target_linears(model, settings.targets)
    _require_rank(rank, linears, chosen)
    windows = _windows(source, settings, seed) if settings.calib_dataset else None
    with seeded(seed):
        factors, layers = _starts(Task(model, linears, chosen, rank, windows, settings))
    ids = _start_tokens(model, windows)
    before = _logits(model, ids)
    digest = base_digest(next(iter(linears.values())).weight)
    meta: dict[str, Any] = {
        "method": method,
        "rank": rank,
        "seed": seed,
        "base": {"reference": source.reference, "revision": source.revision, "digest": digest},
        "targets": list(linears),
        "down_frozen": chosen.down_frozen,
        "calibration": _calibration_json(settings, windows),
        "layers": [layer.as_json() for layer in layers],
        "summary": summarise(layers),
        "trained": False,
    }
    live = attach_adapter(model, factors, meta)
    meta |= _difference(before, _logits(live.model, ids))
    write_adapter(folder, factors, meta)
    return Built(folder, meta, layers, [windows.shortage] if windows and windows.shortage else [])


def _require_place(folder: Path) -> None:
    """ValueError if the folder holds anything but an adapter: it will be replaced as a whole."""
    others = {path.name for path in folder.iterdir()} - {CONFIG, INITIAL, META, WEIGHTS} if folder.is_dir() else set()
    if others or folder.is_file():
        found = min(others) if others else "a file"
        raise ValueError(f"{folder}: holds {found}, no part of an adapter, and would be replaced; give a new folder")


def _require_rank(rank: int, linears: Mapping[str, nn.Linear], method: Method) -> None:
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    for name, linear in linears.items():
        sides = {"input": linear.in_features} | ({"output": linear.out_features} if method.moves_weight else {})
        for side, width in sides.items():
            if rank > width:
                raise ValueError(f"rank {rank} is larger than the {side} of {name}, {width}: choose at most {width}")


def _windows(source: Source, settings: BuildSettings, seed: int) -> Windows:
    from subspacelab.nullspace.windows import text_windows

    assert settings.calib_dataset is not None
    texts = read_texts(settings.calib_dataset)
    return text_windows(source.folder, texts, settings.calib_loader_size, settings.seq_len, seed)


def _starts(task: Task) -> tuple[dict[str, Factors], list[LayerReport]]:
    """Factors and report of every layer, in the model's order."""
    if task.method.peft_init == "corda":
        _prepare_corda(task)
    found = dict(_calibrated_starts(task) if task.windows else _plain_starts(task))
    factors = {name: found[name][0] for name in task.linears}
    return factors, [found[name][1] for name in task.linears]


def _plain_starts(task: Task) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    for name, linear in task.linears.items():
        factors = _start(task, linear, None)
        yield name, (factors, report_layer(name, _shape(linear), factors.B, None))


def _calibrated_starts(task: Task) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """One input after the other: its moments are let go before the next one's eigenvectors are asked for."""
    windows = task.windows
    assert windows is not None
    inputs = shared_inputs(task.model, task.linears, windows)
    if not task.settings.allow_few_tokens:
        require_enough_tokens(windows, split_windows(windows), inputs)
    passes = list(in_passes(inputs, moment_bytes(task.model.device)))
    with (
        progress_bar("calibrating", len(passes) * len(windows.input_ids), "windows") as advance,
        progress_bar("null spaces", len(inputs), "inputs") as solved,
    ):
        for batch in passes:
            moments = calibrate(task.model, windows, batch, batch_size=task.settings.batch_size, progress=advance)
            for shared in batch:
                yield from _input_starts(task, shared, moments.pop(shared.name))
                solved(1)


def _input_starts(
    task: Task, shared: SharedInput, moments: Moments
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    seen = moments.calibration
    space = null_space(seen, task.rank)
    calibrated = (shared.name, seen, moments.held_out, report_input(moments, space))
    for name in shared.modules:
        linear = task.linears[name]
        factors = _start(task, linear, space.basis)
        yield name, (factors, report_layer(name, _shape(linear), factors.B, calibrated))


def _start(task: Task, linear: nn.Linear, basis: Tensor | None) -> Factors:
    """One layer's factors by the method's own start, or PEFT's."""
    from subspacelab.models.lora_start import peft_start

    method, w = task.method, linear.weight.detach()
    if method.null_start is not None:
        assert basis is not None
        return method.null_start(w, basis)
    if method.weight_start is not None:
        return method.weight_start(w, task.rank)
    a, b = peft_start(linear, task.rank, method.peft_init)
    return Factors(a, b, a, b) if method.moves_weight else Factors(a, b)


def _prepare_corda(task: Task) -> None:
    """PEFT's pre-processing of CorDA over the same calibration windows, one at a time, as its hooks need."""
    from subspacelab.models.causal_lm import trunk_of
    from subspacelab.models.lora_start import prepare_corda

    windows = task.windows
    assert windows is not None
    numbers = split_windows(windows).calibration

    def run() -> None:
        for number in numbers:
            ids = windows.input_ids[number][windows.attention_mask[number]]
            trunk_of(task.model)(input_ids=ids[None].to(task.model.device), use_cache=False)

    prepare_corda(task.model, list(task.linears), task.rank, run)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def _start_tokens(model: Any, windows: Windows | None) -> Tensor:
    """A few calibration tokens; without calibration the first of the vocabulary."""
    if windows is None:
        ids = torch.arange(min(START_TOKENS, model.config.vocab_size))
    else:
        ids = windows.input_ids[0][windows.attention_mask[0]][:START_TOKENS]
    return ids[None].to(model.device)


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.double().cpu()


def _difference(before: Tensor, after: Tensor) -> dict[str, float]:
    """Largest difference of the logits, absolute and relative to the largest logit."""
    difference = (after - before).abs().max().item()
    return {"start_difference": difference, "start_difference_relative": difference / before.abs().max().item()}


def _calibration_json(settings: BuildSettings, windows: Windows | None) -> dict[str, Any] | None:
    """What the calibration was; nothing that does not change the result."""
    if windows is None:
        return None
    keys = ("calib_dataset", "calib_loader_size", "seq_len")
    asked = {key: asdict(settings)[key] for key in keys}
    split = split_windows(windows)
    sizes = {"num_windows": len(split.calibration), "num_held_out_windows": len(split.held_out)}
    return asked | sizes | {"num_tokens": int(windows.attention_mask[split.calibration].sum())}
