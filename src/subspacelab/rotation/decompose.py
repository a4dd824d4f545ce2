"""Every weight matrix of a checkpoint, decomposed: read one at a time, written one at a time, continued if stopped."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from subspacelab.checkpoints import Checkpoint, Source, canonical_name, open_checkpoint, require_finite
from subspacelab.devices import choose_device
from subspacelab.distributed import Processes, processes, split_by_cost
from subspacelab.files import remove_partials
from subspacelab.linalg.svd import svd
from subspacelab.linalg.svd_errors import orthogonality_error, reconstruction_error
from subspacelab.reports.progress import progress_bar
from subspacelab.rotation.factors import (
    INDEX,
    Decomposition,
    FactorRecord,
    read_decomposition,
    read_record,
    write_factors,
    write_index,
)
from subspacelab.rotation.plan import Plan, gflop, make_plan

Log = Callable[[Mapping[str, float], int], None]
Method = Literal["auto", "gram", "lapack"]
METHODS = ("auto", "gram", "lapack")


@dataclass(frozen=True)
class Settings:
    """What determines the factors of a weight, beside its entries."""

    rank: int | None
    """Leading singular triples to keep; None keeps all."""
    method: Method
    """auto, gram or lapack."""
    device: torch.device
    """Where to compute."""


def decompose(
    source: Source,
    output_dir: Path,
    *,
    rank: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    device: str = "auto",
    method: str = "auto",
    log: Log | None = None,
) -> Decomposition:
    """Writes the SVD W = U diag(S) Vh of every floating tensor of two or more axes to `output_dir/<basename>`.

    A tensor of shape [a, b, c, ...] is the matrix [a, b*c*...]. `rank` keeps the leading triples only. Factor files
    whose source digest, rank and method still hold are kept, so interrupted work continues. Started by
    `accelerate launch`, the processes share the weights by cost. `log(metrics, step)` gets the errors of each weight.

    Raises ValueError for a setting that does not fit and for a tensor that is quantised or not finite, naming it.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(METHODS)}")
    settings = Settings(rank, cast(Method, method), choose_device(device))
    group = processes(cpu=settings.device.type == "cpu")
    folder = output_dir / source.name
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, rank=rank, include=include, exclude=exclude)
        mine = _share(plan, folder, group)
        digests = _digests(checkpoint, mine)
        group.wait()  # all have looked at their weights, and at what is there, before anything changes
        folder.mkdir(parents=True, exist_ok=True)
        if group.is_main:
            (folder / INDEX).unlink(missing_ok=True)
        _decompose_weights(checkpoint, mine, digests, folder, settings)
    group.wait()
    if group.is_main:
        _finish(folder, plan, source)
    group.wait()
    decomposition = read_decomposition(folder)
    if log is not None and group.is_main:
        _log_errors(decomposition, log)
    return decomposition


def _share(plan: Plan, folder: Path, group: Processes) -> dict[str, tuple[int, int]]:
    """The weights of this process, largest first; one whose file exists costs no more than the check of its digest."""
    names = list(plan.shapes)
    exists = [(folder / f"{name}.safetensors").exists() for name in names]
    costs = [
        math.prod(plan.shapes[name]) / 1e9 if done else gflop(plan.shapes[name])
        for name, done in zip(names, exists, strict=True)
    ]
    return {names[i]: plan.shapes[names[i]] for i in split_by_cost(costs, group.count)[group.rank]}


def _digests(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, str]:
    """Digest of each weight, once its entries are known to be finite."""
    found = {}
    for name in names:
        require_finite(name, checkpoint.read(name))
        found[name] = checkpoint.digest(name)
    return found


def _decompose_weights(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, int]],
    digests: Mapping[str, str],
    folder: Path,
    settings: Settings,
) -> None:
    total = sum(gflop(shape) for shape in shapes.values())
    with progress_bar(f"decompose {checkpoint.source.name}", total=total, unit="GFLOP") as advance:
        for name, shape in shapes.items():
            if not _still_holds(read_record(folder / f"{name}.safetensors"), shape, digests[name], settings):
                _decompose_one(checkpoint, name, digests[name], folder, settings)
            advance(gflop(shape))


def _still_holds(record: FactorRecord | None, shape: tuple[int, int], digest: str, settings: Settings) -> bool:
    if record is None or record.format != FactorRecord.format:
        return False
    wanted = (digest, settings.rank or min(shape), settings.method)
    return (record.source_digest, record.rank, record.requested_method) == wanted


def _decompose_one(checkpoint: Checkpoint, name: str, digest: str, folder: Path, settings: Settings) -> None:
    info = checkpoint.info(name)
    tensor = checkpoint.read(name)
    w = tensor.reshape(tensor.shape[0], -1)
    factors = svd(w, rank=settings.rank, method=settings.method, device=settings.device)
    record = FactorRecord(
        weight=name,
        canonical_name=canonical_name(name),
        original_shape=tuple(info.shape),
        matrix_shape=(w.shape[0], w.shape[1]),
        storage_dtype=info.dtype,
        rank=len(factors.S),
        method=factors.method,
        requested_method=settings.method,
        relative_reconstruction_error=reconstruction_error(w, factors),
        orthogonality_error=orthogonality_error(factors),
        source_digest=digest,
    )
    write_factors(folder, factors, record)


def _finish(folder: Path, plan: Plan, source: Source) -> None:
    """Writes the index from the files' own records, and removes files of weights that are no longer there."""
    records = {name: read_record(folder / f"{name}.safetensors") for name in plan.shapes}
    complete = {name: record for name, record in records.items() if record is not None}
    if len(complete) < len(records):
        missing = next(name for name, record in records.items() if record is None)
        raise ValueError(f"{folder}: factors of {missing!r} are missing though the work is done; run it again")
    remove_partials(folder)
    current = {record.file for record in complete.values()}
    for path in folder.glob("*.safetensors"):
        if path.name not in current:
            path.unlink()
    # A folder's path would tie the result to one machine: its name says what it was.
    reference = source.name if Path(source.reference).is_absolute() else source.reference
    write_index(folder, complete, plan.skipped, {"reference": reference, "revision": source.revision})


def _log_errors(decomposition: Decomposition, log: Log) -> None:
    for step, record in enumerate(decomposition.weights.values()):
        errors = {
            "relative_reconstruction_error": record.relative_reconstruction_error,
            "orthogonality_error": record.orthogonality_error,
        }
        log(errors, step)
