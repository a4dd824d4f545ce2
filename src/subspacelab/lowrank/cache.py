"""The folder of a feature cache: its owner, complete shards, and the replacement of an old cache."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ValidationError
from torch import Tensor

from subspacelab.checkpoints import write_tensors
from subspacelab.core.files import (
    holds,
    read_json,
    remove_folder,
    remove_partials,
    sha256_file,
    write_beside,
    write_if_changed,
    write_json,
)
from subspacelab.core.ownership import lock_of, require_own_entries, require_same_job, sole_writer
from subspacelab.data.pictures import Picture, SquarePicture
from subspacelab.lowrank.features import (
    INDEX,
    JOB,
    META,
    TENSOR,
    FeatureMeta,
    read_header,
    shard_name,
)
from subspacelab.lowrank.kept_pictures import pictures_name

PENDING = "pending"  # shards that are made, until all are: an earlier cache stays whole meanwhile
_OWN = re.compile(rf"{JOB}|{PENDING}|{META}|{INDEX}|features-\d{{5,}}\.(json|safetensors)|pictures-\d{{5,}}\.parquet")


class CacheJob(BaseModel, extra="forbid"):
    """The sources and settings of a cache."""

    model: str
    revision: str | None
    weights: str
    """Digest of the weights: two checkpoints may have one name."""
    pictures: str
    image_size: int
    limit: int | None


class ShardEntry(BaseModel, extra="forbid"):
    """A picture in a shard."""

    dataset_id: str
    sha256: str


class ShardRecord(BaseModel, extra="forbid"):
    """Content of a shard; written last, so its existence shows that the shard is complete."""

    made_from: str
    """Digest of the weights, the size and the pictures."""
    entries: list[ShardEntry]
    """The pictures in it, row by row."""
    unreadable: list[str]
    """Pictures that were left out."""
    digests: dict[str, str]
    """SHA-256 of its files; empty if no picture could be read."""


@contextmanager
def sole_cache_writer(folder: Path, job: CacheJob, *, is_main: bool) -> Iterator[CacheJob]:
    """Makes `folder` that of `job` and keeps other commands off it; in other than the main process nothing is done.

    Yields the job under the name that the folder has for it. A ValueError, before anything changes, for a folder of
    another job, and for one that others are writing to.
    """
    # The lock lies within: a volume may be mounted where nothing can lie beside it.
    with sole_writer(folder / JOB) if is_main else nullcontext():
        yield _claim(folder, job) if is_main else job


def _claim(folder: Path, job: CacheJob) -> CacheJob:
    own = [lock_of(folder / JOB).name]
    if (folder / JOB).is_file():
        found = _read_job(folder / JOB)
        if found.weights == job.weights:  # by whatever name
            found.model = job.model = _first_name(folder, found) or job.model
        if job.limit is None or (found.limit is not None and found.limit <= job.limit):  # more pictures are added
            found.limit = job.limit
        require_same_job(folder, found.model_dump(), job.model_dump())
        own += _own_names(folder)
        require_own_entries(folder / PENDING, _own_names(folder / PENDING), "a feature cache's unfinished shards")
    elif (folder / META).is_file() and (folder / INDEX).is_file():
        raise ValueError(f"{folder}: a feature cache without {JOB}, of an older version; cache into a new folder")
    require_own_entries(folder, own, "a feature cache that this command began")
    if folder.is_dir():
        remove_partials(folder)
    write_json(folder / JOB, job.model_dump())
    return job


def _first_name(folder: Path, found: CacheJob) -> str | None:
    """What a cache calls its checkpoint: it keeps this name, on which trainings rely. None if it gives it two."""
    try:
        named = FeatureMeta(**read_json(folder / META)).model
    except (OSError, ValueError, TypeError):  # none, or a damaged one
        return found.model
    return named if named == found.model else None


def _own_names(folder: Path) -> list[str]:
    """The entries that a cache may have made in `folder`: no link, through which it would write elsewhere."""
    found = folder.iterdir() if folder.is_dir() else []
    return [path.name for path in found if _OWN.fullmatch(path.name) and not path.is_symlink()]


def _read_job(path: Path) -> CacheJob:
    try:
        return CacheJob.model_validate(read_json(path), strict=True)
    except ValidationError as e:
        raise ValueError(f"{path}: not the job of a feature cache; give another folder, or remove this one") from e


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.json"


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    shard = shard_name(number)
    return folder / shard, folder / pictures_name(shard)


def is_made(folder: Path, number: int, made_from: str) -> bool:
    """Whether a shard with the same content is complete, in its place or among the pending ones."""
    if _is_complete(folder, number, made_from):
        _record_path(folder / PENDING, number).unlink(missing_ok=True)
        return True
    return _is_complete(folder / PENDING, number, made_from)


def write_shard(
    folder: Path,
    number: int,
    made_from: str,
    features: Tensor | None,
    readable: Sequence[tuple[Picture, SquarePicture]],
    unreadable: list[str],
) -> None:
    """Writes a shard [n, tokens, dim], its pictures and its record to the pending ones; `features` is None for n = 0.

    The pictures themselves, small, with their boxes: `visualize` needs no more than the cache.
    """
    pending = _record_path(folder / PENDING, number)
    features_file, pictures_file = files = _shard_files(folder / PENDING, number)
    for file in (pending, *files):
        file.unlink(missing_ok=True)
    if features is not None:
        write_tensors(features_file, {TENSOR: features})
        rows = [{"image": s.jpeg, "bbox": None if s.bbox is None else list(s.bbox)} for _, s in readable]
        write_if_changed(pictures_file, _as_parquet(pd.DataFrame(rows)))
    digests = {file.name: sha256_file(file) for file in files if features is not None}
    entries = [ShardEntry(dataset_id=picture.dataset_id, sha256=picture.digest) for picture, _ in readable]
    record = ShardRecord(made_from=made_from, entries=entries, unreadable=unreadable, digests=digests)
    write_json(pending, record.model_dump())


def _is_complete(folder: Path, number: int, wanted: str) -> bool:
    """Whether the shard has the same content and its files are undamaged."""
    try:
        record = _read_record(folder, number)
    except (OSError, ValueError):  # none, or a damaged one
        return False
    files = {file.name: file for file in _shard_files(folder, number)}
    return (
        record.made_from == wanted
        and record.digests.keys() == (files.keys() if record.entries else set())
        and all(files[name].is_file() and sha256_file(files[name]) == digest for name, digest in record.digests.items())
    )


def _read_record(folder: Path, number: int) -> ShardRecord:
    return ShardRecord.model_validate(read_json(_record_path(folder, number)), strict=True)


def read_records(folder: Path, num_shards: int) -> list[ShardRecord]:
    """Records of the shards of a new cache, those in their places and the pending ones."""
    pending = _pending(folder, num_shards)
    return [_read_record(folder / PENDING if n in pending else folder, n) for n in range(num_shards)]


def _pending(folder: Path, num_shards: int) -> list[int]:
    return [number for number in range(num_shards) if _record_path(folder / PENDING, number).is_file()]


def finish_cache(folder: Path, records: Sequence[ShardRecord], job: CacheJob) -> None:
    """Puts the new shards in their places, joins all to the index, and writes meta.json last: then it is complete."""
    pending = _pending(folder, len(records))
    rows = [
        {"dataset_id": entry.dataset_id, "sha256": entry.sha256, "shard": shard_name(number), "offset": offset}
        for number, record in enumerate(records)
        for offset, entry in enumerate(record.entries)
    ]
    table = pd.DataFrame(rows)
    table.insert(0, "row", range(len(table)))
    index = _as_parquet(table)
    if pending or not holds(folder / INDEX, index):
        (folder / META).unlink(missing_ok=True)
    for number in pending:
        _take_over(folder, number)
    _remove_leftovers(folder, len(records))
    write_if_changed(folder / INDEX, index)
    first = read_header(folder / table["shard"][0]).info
    _, tokens, dim = first.shape
    unreadable = [name for record in records for name in record.unreadable]
    meta = FeatureMeta(job.model, job.revision, job.image_size, tokens, dim, first.dtype, len(table), unreadable)  # type: ignore[arg-type]
    write_json(folder / META, meta.as_json())


def _take_over(folder: Path, number: int) -> None:
    """Moves a shard out of the pending ones, its record last: without a record the shard is neither old nor new."""
    record = _record_path(folder, number)
    record.unlink(missing_ok=True)
    for path in (*_shard_files(folder, number), record):
        made = folder / PENDING / path.name
        if made.is_file():
            with write_beside(path) as partial:
                os.replace(made, partial)
        else:  # of a shard without one readable picture
            path.unlink(missing_ok=True)


def _as_parquet(table: pd.DataFrame) -> bytes:
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _remove_leftovers(folder: Path, num_shards: int) -> None:
    """Removes shards of an earlier, larger cache, found by their records, and the pending folder."""
    current = {_record_path(folder, number).stem for number in range(num_shards)}
    for record in folder.glob("features-*.json"):
        if record.stem in current:
            continue
        try:
            digests = _read_record(folder, int(record.stem.rpartition("-")[2])).digests
        except ValueError:  # not of a cache
            continue
        for name, digest in digests.items():
            if name in _own_names(folder) and sha256_file(folder / name) == digest:
                (folder / name).unlink()
        record.unlink()
    if (folder / PENDING).exists():
        remove_folder(folder / PENDING)
