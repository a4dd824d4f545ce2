"""Building of an adapter: from text to second moments, to a start per layer, to an ordinary PEFT folder."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.checkpoints import Source
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.files import (
    expanded,
    read_json,
    remove_folder,
    remove_partials_of,
    seen_from,
    write_json,
)
from subspacelab.core.ownership import require_apart, require_own_entries, require_same_job, sole_writer
from subspacelab.core.references import of_pipeline
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.models.adaptable import reach
from subspacelab.models.adapter_card import CARD, edited_card
from subspacelab.models.block_stream import open_stream
from subspacelab.models.causal_lm import unused_weights
from subspacelab.models.lora_folder import FILES, META, base_digest, read_meta, require_own_config, write_adapter
from subspacelab.nullspace.blocks import Task, find_starts
from subspacelab.nullspace.calibration import require_enough_tokens, split_windows
from subspacelab.nullspace.card import card_of
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.inits import Method, method_of
from subspacelab.nullspace.starts import LayerReport, require_rank, summarise

CALIBRATION = "wikitext2"
"""Default text of a method that needs calibration."""
START_TOKENS = 256
"""Number of tokens on which the model with the adapter is compared with the base."""
RESULT = ("calib_dataset", "calib_loader_size", "seq_len", "targets")
"""Settings that decide the result; the others only say how it is computed."""

UNFINISHED, JOB, OURS = "unfinished", "job.json", re.compile(r"job\.json|block-\d+\.\w+|states--?\d+")
"""Suffix of the folder beside an unfinished adapter; its file that describes the build; pattern of its file names."""


@dataclass(frozen=True)
class Built:
    """A built adapter."""

    folder: Path
    """Folder of the adapter."""
    meta: dict[str, Any]
    """The content of its `nullspace.json`."""
    layers: list[LayerReport]
    """One report per layer, in the model's order."""
    notes: list[str]
    """Notes for the user, such as a text shorter than requested."""


def build_adapter(
    source: Source,
    folder: Path,
    *,
    method: str,
    rank: int,
    seed: int,
    settings: BuildSettings,
    progress: Progress = no_progress,
) -> Built:
    """Builds an adapter of `rank` on the checkpoint `source` and writes it to `folder`, whole or not at all.

    An untrained adapter of the same base, method and settings in `folder` is replaced. ValueError, in one line, if the
    folder holds anything else or lies in the model's folder; for too few calibration tokens, a rank larger than a
    layer, targets that match nothing, NaN among a layer's inputs; and all errors of reading the model or the text.
    """
    chosen = method_of(method)
    if chosen.needs_calibration and settings.calib_dataset is None:
        settings = replace(settings, calib_dataset=CALIBRATION)
    if folder.name in ("", ".."):
        raise ValueError(f"{folder}: name a folder for the adapter, which is replaced as a whole")
    require_apart(folder, [source.folder, *([Path(settings.calib_dataset)] if settings.calib_dataset else [])])
    job = _job(source, folder, method, rank, seed, settings)
    with sole_writer(folder):
        _require_place(folder, job)
        remove_partials_of(folder)
        return _build(source, folder, chosen, job, settings, progress)


def _job(source: Source, folder: Path, method: str, rank: int, seed: int, settings: BuildSettings) -> dict[str, Any]:
    """Source and settings of an adapter; local paths are relative to it, however the user typed them."""
    own = {key: value for key, value in asdict(settings).items() if key in RESULT}
    text, named = settings.calib_dataset, source.revision or of_pipeline(source.reference)
    if text is not None and (file := expanded(text)).exists():
        own["calib_dataset"] = seen_from(folder, file)
    base = source.reference if named else seen_from(folder, source.folder)
    return own | {"base": base, "revision": source.revision, "method": method, "rank": rank, "seed": seed}


def _build(
    source: Source, folder: Path, chosen: Method, job: dict[str, Any], settings: BuildSettings, progress: Progress
) -> Built:
    from subspacelab.models.lora_factors import seeded

    method, rank, seed = job["method"], job["rank"], job["seed"]
    stream, linears = open_stream(source.folder, device=choose_device(settings.device), targets=settings.targets)
    require_rank(rank, linears, chosen)
    reached, unused = reach(stream.model, linears), unused_weights(source.folder, stream.model)
    with stream.loaded(next(i for i in range(len(stream)) if stream.within(i, linears))):
        digest = base_digest(next(iter(linears.values())).weight)
    _require_same_base(folder, source, digest)
    windows = _windows(source, settings, seed) if settings.calib_dataset else None
    if windows and not settings.allow_few_tokens:
        require_enough_tokens(windows, linears)
    ids = _start_tokens(stream.model, windows)
    task = Task(source.folder, stream, linears, chosen, rank, windows, ids, settings, progress)
    with unfinished(folder, job | {"digest": digest} | _exactly(settings, windows)) as work, seeded(seed):
        found = find_starts(task, work)
        meta: dict[str, Any] = {
            "method": method,
            "rank": rank,
            "seed": seed,
            "base": {"reference": source.reference, "revision": source.revision, "digest": digest},
            "targets": list(linears),
            "down_frozen": chosen.down_frozen,
            "calibration": _calibration_json(settings, windows),
            "job": job,
            "reach": asdict(reached),
            "layers": [layer.as_json() for layer in found.layers],
            "summary": summarise(found.layers),
            "trained": False,
        }
        before = read_meta(folder) if (folder / META).is_file() else None
        if before and (of_pipeline(before["base"]["reference"]) or expanded(before["base"]["reference"]).exists()):
            # As it was typed first: trainings know the adapter by its bytes.
            meta |= {"base": before["base"], "job": before["job"]}
            if meta["calibration"]:
                meta["calibration"]["calib_dataset"] = before["calibration"]["calib_dataset"]
        meta |= _difference(found.before, found.after)
        kept = edited_card(folder) is not None
        write_adapter(folder, found.factors, meta, card_of(meta))
    notes = [f"{CARD} was edited since and stays as it is"] if kept else []
    notes += [windows.shortage] if windows and windows.shortage else []
    notes += [f"{len(unused)} stored weights are no part of the model: {', '.join(unused[:3])}"] if unused else []
    notes += [stream.note] if stream.note else []
    return Built(folder, read_meta(folder), found.layers, notes)


@contextmanager
def unfinished(folder: Path, job: Mapping[str, Any]) -> Iterator[Path]:
    """A folder beside `folder` for the results of an unfinished build; it is removed at the end and stays after a kill.

    Results of the same `job` are used again, those of another one are removed. ValueError if the folder is not ours.
    """
    work = folder.with_name(f".{folder.name}.{UNFINISHED}")
    wanted = json.loads(json.dumps(job))
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise ValueError(f"{work}: not of an unfinished build, and one would go there; move it away")
    if work.is_dir() and any(work.iterdir()):
        if not (work / JOB).is_file():
            raise ValueError(f"{work}: not of an unfinished build, and one would go there; move it away")
        require_own_entries(work, [p.name for p in work.iterdir() if OURS.fullmatch(p.name)], "an unfinished build")
        if read_json(work / JOB) != wanted:
            remove_folder(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / JOB, wanted)
    try:
        yield work
    except ValueError:  # which another run would raise too
        remove_folder(work)
        raise
    remove_folder(work)


def _exactly(settings: BuildSettings, windows: Windows | None) -> dict[str, Any]:
    """Everything beyond the job that decides the last bits of an adapter."""
    parts = [] if windows is None else [windows.input_ids, windows.attention_mask.long()]
    tokens = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
    return {"tokens": tokens, "batch_size": settings.batch_size, "device": settings.device}


def _require_place(folder: Path, job: Mapping[str, Any]) -> None:
    """ValueError unless the folder is empty or holds the untrained adapter of that job, which will be replaced."""
    require_own_entries(folder, FILES, "an adapter")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    found = read_meta(folder)
    if found["trained"]:
        raise ValueError(
            f"{folder}: holds a trained adapter of {found['method']}, which would be lost; give a new folder"
        )
    if "job" not in found:
        raise ValueError(f"{folder}: does not say what it was built from (an earlier version's?); give a new folder")
    require_same_job(folder, found["job"], job)
    require_own_config(folder)


def _require_same_base(folder: Path, source: Source, digest: str) -> None:
    """ValueError if the adapter in `folder` was built on other weights of the same name."""
    if (folder / META).is_file() and read_meta(folder)["base"]["digest"] != digest:
        raise ValueError(f"{folder}: built on other weights that were called {source.reference}; give a new folder")


def _windows(source: Source, settings: BuildSettings, seed: int) -> Windows:
    from subspacelab.models.text_windows import text_windows

    assert settings.calib_dataset is not None
    texts = read_texts(settings.calib_dataset)
    return text_windows(source.folder, texts, settings.calib_loader_size, settings.seq_len, seed)


def _start_tokens(model: Any, windows: Windows | None) -> Tensor:
    """The first calibration tokens; without calibration, the first tokens of the vocabulary."""
    if windows is None:
        ids = torch.arange(min(START_TOKENS, model.config.vocab_size))
    else:
        ids = windows.input_ids[0][windows.attention_mask[0]][:START_TOKENS]
    return ids[None]


def _difference(before: Tensor, after: Tensor) -> dict[str, float]:
    """Largest difference of the logits, absolute and relative to the largest logit."""
    difference = (after - before).abs().max().item()
    relative = difference / before.abs().max().item() if difference else 0.0  # a model of zeros has logits of zero
    return {"start_difference": difference, "start_difference_relative": relative}


def _calibration_json(settings: BuildSettings, windows: Windows | None) -> dict[str, Any] | None:
    """Facts about the calibration that decide the result."""
    if windows is None:
        return None
    keys = ("calib_dataset", "calib_loader_size", "seq_len")
    asked = {key: asdict(settings)[key] for key in keys} | {"prefix": list(windows.prefix)}
    split = split_windows(windows)
    sizes = {"num_windows": len(split.calibration), "num_held_out_windows": len(split.held_out)}
    return asked | sizes | {"num_tokens": int(windows.attention_mask[split.calibration].sum())}
