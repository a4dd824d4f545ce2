"""Builds an adapter: text in, second moments, a start per layer, and an ordinary PEFT folder out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subspacelab.checkpoints import Source
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.devices import choose_device
from subspacelab.models.lora_folder import CONFIG, INITIAL, META, WEIGHTS, base_digest, write_adapter
from subspacelab.nullspace.calibration import (
    split_windows,
)
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.layer_report import LayerReport, summarise
from subspacelab.nullspace.methods import Method, method_of
from subspacelab.nullspace.starts import Task, starts

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
        factors, layers = starts(Task(model, linears, chosen, rank, windows, settings))
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
    asked = {key: asdict(settings)[key] for key in keys} | {"prefix": list(windows.prefix)}
    split = split_windows(windows)
    sizes = {"num_windows": len(split.calibration), "num_held_out_windows": len(split.held_out)}
    return asked | sizes | {"num_tokens": int(windows.attention_mask[split.calibration].sum())}
