"""Decomposition of every weight matrix of a checkpoint: read and written one at a time; interrupted runs continue."""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast, get_args

import torch

from subspacelab.checkpoints import Checkpoint, Weights, canonical_name, open_checkpoint, tensor_digest
from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.devices import Processes, choose_device, processes, split_by_cost
from subspacelab.core.files import remove_partials
from subspacelab.core.ownership import require_apart, sole_writer
from subspacelab.linalg.svd import SVD, orthogonality_error, reconstruction_error, svd
from subspacelab.rotation.config import Format, Method
from subspacelab.rotation.earlier import UNFINISHED, Earlier, Origin, begin, origin_of, read_earlier, remove_stale
from subspacelab.rotation.factors import (
    FORMAT,
    FORMATS,
    Decomposition,
    FactorRecord,
    digest_factors,
    factors_hold,
    read_decomposition,
    read_record,
    write_factors,
    write_index,
)
from subspacelab.rotation.plan import Part, Plan, Selection, find_parts, gflop, make_plan, require_one_layout

METHODS = get_args(Method)


@dataclass(frozen=True)
class Settings:
    """Settings that determine the factors of a weight."""

    rank: int | None
    """Number of leading singular triples to keep; None keeps all."""
    method: Method
    """auto, gram or lapack."""
    format: Format
    """Storage dtype of U and Vh."""
    device: torch.device
    """Device of the computation."""


def decompose_into(
    place: Weights,
    output_dir: Path,
    *,
    rank: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    device: str = "auto",
    method: str = "auto",
    format: str = "float32",
    log: Log = no_log,
    progress: Progress = no_progress,
) -> Decomposition:
    """Writes the SVD W = U diag(S) Vh of every floating tensor of two or more axes to `output_dir/<basename>`.

    A tensor of shape [a, b, c, ...] is the matrix [a, b*c*...]. Fused experts, [experts, out, in] or [experts, in,
    out], are a matrix [out, in] each, `name[e]`. FP8 is dequantised by its scale. Each tensor is read once. `rank`
    keeps only the leading triples; U and Vh are stored in `format`, and the index gives their error. Factor files are
    kept if their source digest, settings and own digests are unchanged, so that interrupted work continues. Started by
    `accelerate launch`, the processes share the weights by cost. `log(metrics, step)` receives the errors of each
    weight.

    Raises ValueError, before anything changes, for unsuitable settings, for a quantised tensor, naming it, and for a
    folder that holds factors of another source or other settings, or a file in their place. A tensor that is not finite
    raises when it is read; if a complete decomposition exists, also before anything changes. Further weights of the
    same source are added to the existing ones.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(METHODS)}")
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: allowed are {', '.join(FORMATS)}")
    settings = Settings(rank, cast(Method, method), cast(Format, format), choose_device(device))
    group = processes(cpu=settings.device.type == "cpu")
    with open_checkpoint(place, whole=True) as checkpoint, ExitStack() as stack:
        source, as_opened = checkpoint.source, _stamp(checkpoint)
        folder = output_dir / source.name
        require_apart(folder, [source.folder])
        plan = make_plan(checkpoint, rank=rank, selection=Selection.of(include, exclude))
        if group.is_main:
            stack.enter_context(sole_writer(folder))
        earlier, origin = read_earlier(folder), origin_of(source, folder)
        earlier.require_settings(rank, method, format)
        work = _look(checkpoint, _share(plan, folder, group), earlier, origin, settings)
        others = _look_at_others(checkpoint, plan, earlier, origin, settings) if group.is_main else _Work({}, [])
        require_one_layout([*plan.parts, *(part.weight for part in others.digests)])
        # All have looked at what is there, and at weights that it would be of, before anything changes.
        unfinished = group.any_of(bool(work.todo or others.todo))
        parts = [*plan.parts.values(), *others.digests]
        if group.is_main and unfinished:
            begin(earlier, origin, [part.file for part in parts])
        group.wait()
        _decompose_parts(checkpoint, work + others, folder, settings, progress)
        if _stamp(checkpoint) != as_opened:
            raise ValueError(f"{source.reference}: the checkpoint changed while it was decomposed; run it again")
        group.wait()
        if group.is_main:
            listed = {part.key for part in others.digests}
            skipped = {name: reason for name, reason in plan.skipped.items() if name not in listed}
            _finish(earlier, origin, parts, skipped, settings)
        group.wait()
    decomposition = read_decomposition(folder)
    if group.is_main:
        _log_errors(decomposition, log)
    return decomposition


def decompose(
    checkpoint: Weights,
    *,
    rank: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    method: str = "auto",
    format: str = "float32",
    device: str = "auto",
    output_dir: Path | str | None = None,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> Decomposition:
    """The SVD W = U diag(S) Vh of every weight matrix, one at a time; iterate for (name, SVD), read as float32.

    `checkpoint`: a reference, a path, an opened checkpoint, a state dict or a module. `rank` keeps only the leading
    triples; `include` and `exclude` are regular expressions for names; U and Vh are stored in `format`. With
    `output_dir` the factors are kept in `output_dir/<name>`, and an interrupted run continues; without it, they are in
    a temporary folder that is removed with the object.

    Raises ValueError, in one line, as `decompose_into` does.

        for name, svd in decompose(checkpoint, rank=64, include="q_proj"):
            print(name, svd.S[:3])
    """
    temporary = None if output_dir is not None else TemporaryDirectory(prefix="subspacelab-")
    found = decompose_into(
        checkpoint,
        Path(output_dir if temporary is None else temporary.name),  # type: ignore[arg-type]
        rank=rank,
        include=include,
        exclude=exclude,
        method=method,
        format=format,
        device=device,
        log=log,
        progress=progress,
    )
    return replace(found, kept_by=temporary)


@dataclass(frozen=True)
class _Work:
    """The work of one process."""

    digests: dict[Part, str | None]
    """Its matrices, each with the digest of its stored entries if they were read."""
    todo: list[Part]
    """The matrices among them whose factors are missing or out of date."""

    def __add__(self, other: "_Work") -> "_Work":
        return _Work(self.digests | other.digests, self.todo + other.todo)


def _stamp(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Size and modification time of each of the checkpoint's local files."""
    folder = checkpoint.source.folder
    shards = sorted({checkpoint.info(name).shard for name in checkpoint.names})
    files = [folder if folder.is_file() else folder / shard for shard in shards]
    return [(stat.st_size, stat.st_mtime_ns) for file in files if file.is_file() and (stat := file.stat())]


def _share(plan: Plan, folder: Path, group: Processes) -> list[Part]:
    """The matrices of this process, largest first; one with an existing file counts only the cost of its digest."""
    parts = list(plan.parts.values())
    costs = [math.prod(part.shape) / 1e9 if (folder / part.file).exists() else gflop(part.shape) for part in parts]
    return [parts[i] for i in split_by_cost(costs, group.count)[group.rank]]


def _look(checkpoint: Checkpoint, parts: Iterable[Part], earlier: Earlier, origin: Origin, settings: Settings) -> _Work:
    """Reads each matrix that has factors; ValueError for one that cannot be read, or must not be replaced.

    If a complete decomposition exists, all matrices are read, so that one that is not finite does not destroy it.
    """
    work = _Work({}, [])
    for part in parts:
        is_there = earlier.is_finished or os.path.lexists(earlier.folder / part.file)
        digest = tensor_digest(part.read_sound(checkpoint)) if is_there else None
        if digest is not None:
            earlier.require_source(origin, checkpoint.source, part.weight, digest)
        work.digests[part] = digest
        if digest is None or not _still_holds(earlier, part, digest, settings):
            earlier.require_own(part.file)
            work.todo.append(part)
    return work


def _look_at_others(checkpoint: Checkpoint, plan: Plan, earlier: Earlier, origin: Origin, settings: Settings) -> _Work:
    """The same for weights outside this run's selection: their factors are kept if the weight is unchanged."""
    unchanged = []
    others = [record for record in earlier.records.values() if record.weight not in plan.parts]
    stored = find_parts(checkpoint, others)
    for record in others:
        part = stored.get(record.weight)
        digest = tensor_digest(part.read(checkpoint)) if part is not None else None
        earlier.require_source(origin, checkpoint.source, record.weight, digest)
        if part is not None and digest == record.source_digest:
            unchanged.append(part)
    return _look(checkpoint, unchanged, earlier, origin, settings)


def _decompose_parts(checkpoint: Checkpoint, work: _Work, folder: Path, settings: Settings, progress: Progress) -> None:
    total = sum(gflop(part.shape) for part in work.todo)
    with progress(f"decompose {checkpoint.source.name}", total, "GFLOP") as advance:
        for part in work.todo:
            work.digests[part] = _decompose_one(checkpoint, part, folder, settings)
            advance(gflop(part.shape))
    for part, digest in work.digests.items():
        _require_done(folder, part, digest, settings)


def _still_holds(earlier: Earlier, part: Part, digest: str, settings: Settings) -> bool:
    """Whether factors and record exist, belong to this matrix, and are undamaged."""
    record = read_record(earlier.folder / part.file)
    if record is None or record != earlier.records.get(part.weight, record):
        return False
    return _is_of(record, part, digest, settings) and factors_hold(earlier.folder, record)


def _is_of(record: FactorRecord, part: Part, digest: str, settings: Settings) -> bool:
    found = (record.format, record.weight, record.source_digest, record.rank)
    made_by = (record.requested_method, record.factor_dtype)
    wanted = (FORMAT, part.weight, digest, settings.rank or min(part.shape))
    return (found, made_by) == (wanted, (settings.method, settings.format))


def _decompose_one(checkpoint: Checkpoint, part: Part, folder: Path, settings: Settings) -> str:
    """Writes the factors of a matrix, which is read once; returns the digest of its entries."""
    info = checkpoint.info(part.key)
    tensor = part.read_sound(checkpoint)
    digest = tensor_digest(tensor)
    w = tensor.reshape(part.shape)
    factors = _rounded(svd(w, rank=settings.rank, method=settings.method, device=settings.device), settings.format)
    record = FactorRecord(
        weight=part.weight,
        canonical_name=canonical_name(part.weight),
        original_shape=tuple(info.shape),
        matrix_shape=part.shape,
        storage_dtype=info.dtype,  # type: ignore[arg-type]  # the plan holds floating tensors only
        rank=len(factors.S),
        method=factors.method,
        requested_method=settings.method,
        relative_reconstruction_error=reconstruction_error(w, factors),
        orthogonality_error=orthogonality_error(factors),
        source_digest=digest,
        expert=part.expert,
        file=part.file,
        factor_digests=digest_factors(factors),
        factor_dtype=settings.format,
        is_oriented=part.transposed is not None,
    )
    write_factors(folder, factors, record)
    return digest


def _rounded(factors: SVD, format: Format) -> SVD:
    """U and Vh in their storage dtype; S stays float32, since it may exceed the range of float16."""
    return replace(factors, U=factors.U.to(FORMATS[format]), Vh=factors.Vh.to(FORMATS[format]))


def _require_done(folder: Path, part: Part, digest: str | None, settings: Settings) -> FactorRecord:
    """The record of a finished matrix; its digest is known to the process that decomposed it."""
    record = read_record(folder / part.file)
    if record is None or not _is_of(record, part, digest or record.source_digest, settings):
        raise ValueError(
            f"{folder / part.file}: the factors of {part.weight!r} are gone or replaced though the work is done; "
            "run it again"
        )
    return record


def _finish(
    earlier: Earlier, origin: Origin, parts: Iterable[Part], skipped: Mapping[str, str], settings: Settings
) -> None:
    """Writes the index from the files' own records, and removes our files of weights that no longer exist."""
    folder = earlier.folder
    records = {part.weight: _require_done(folder, part, None, settings) for part in parts}
    remove_partials(folder)
    remove_stale(earlier, [record.file for record in records.values()])
    write_index(folder, records, skipped, origin.source, origin.place)
    (folder / UNFINISHED).unlink(missing_ok=True)


def _log_errors(decomposition: Decomposition, log: Log) -> None:
    for step, record in enumerate(decomposition.weights.values()):
        errors = {
            "relative_reconstruction_error": record.relative_reconstruction_error,
            "orthogonality_error": record.orthogonality_error,
        }
        log(errors, step)
