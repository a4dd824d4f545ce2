"""Vision features of many pictures, written shard by shard, continued where it was stopped."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError

from subspacelab.checkpoints import Source, Weights, source_of, write_tensors
from subspacelab.core.callbacks import Log, Progress, no_log, no_progress
from subspacelab.core.devices import choose_device, processes
from subspacelab.core.files import (
    holds,
    read_json,
    remove_folder,
    remove_partials,
    seen_from,
    sha256_file,
    through_links,
    write_beside,
    write_if_changed,
    write_json,
)
from subspacelab.core.ownership import lock_of, require_apart, require_own_entries, require_same_job, sole_writer
from subspacelab.data.pictures import (
    Picture,
    SquarePicture,
    count_pictures,
    looks_like_a_picture,
    read_pictures,
    square,
)
from subspacelab.data.references import resolve_pictures
from subspacelab.lowrank.features import (
    INDEX,
    JOB,
    META,
    TENSOR,
    FeatureMeta,
    Features,
    pictures_name,
    read_header,
    shard_name,
)
from subspacelab.models.vision_tower import VisionTower, load_vision_tower

SHARD_PICTURES = 64
UNREADABLE_SHARE = 0.01  # more than this is an error: it is the wrong path, or a broken data set
JPEG_QUALITY = 90  # of the pictures kept for looking at
PENDING = "pending"  # shards that are made, until all are: an earlier cache stays whole meanwhile
_OWN = re.compile(rf"{JOB}|{PENDING}|{META}|{INDEX}|features-\d{{5,}}\.(json|safetensors)|pictures-\d{{5,}}\.parquet")


@dataclass(frozen=True)
class CachePlan:
    """What is cached and how."""

    pictures: Path
    """A parquet file or folder, a .jsonl, or a folder of pictures."""
    image_size: int = 448
    """Pixels per side; a multiple of 28."""
    limit: int | None = None
    """Only the first pictures."""
    batch_size: int = 8
    """Pictures per pass of the tower."""
    name: str | None = None
    """Of the pictures, by which a cache of others is told from one of these; their path from the cache if left out."""


def extract(
    checkpoint: Weights,
    pictures: Path | str,
    *,
    image_size: int = 448,
    limit: int | None = None,
    batch_size: int = 8,
    output_dir: Path | str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Features:
    """The merged vision tokens of every picture, X [tokens, dim] each; the language model is never read.

    `checkpoint`: a Qwen2.5-VL by reference, path or opened. `pictures`: a parquet file or folder, a .jsonl, a folder
    of pictures, or a data set of the hub. `image_size`: pixels per side, 448 gives 256 tokens. With `output_dir` the
    cache is kept there, and one that was cut short goes on; without, it goes with the object.

    Raises CheckpointError or ValueError in one line, as `cache_features` does.

        x = extract("Qwen/Qwen2.5-VL-3B-Instruct", "pictures", output_dir="features")
        x.shape, x[0]
    """
    plan = CachePlan(resolve_pictures(str(pictures)), image_size, limit, batch_size)
    temporary = None if output_dir is not None else TemporaryDirectory(prefix="subspacelab-")
    folder = Path(output_dir if temporary is None else temporary.name)  # type: ignore[arg-type]
    cache_features(source_of(checkpoint), plan, folder, device=choose_device(device), progress=progress)
    return Features(folder, kept_by=temporary)


class _Entry(BaseModel, extra="forbid"):
    dataset_id: str
    sha256: str


class _Record(BaseModel, extra="forbid"):
    """What a shard holds; written last, so that with it the shard is complete."""

    made_from: str
    """Digest of the weights, the size and the pictures."""
    entries: list[_Entry]
    """The pictures in it, row by row."""
    unreadable: list[str]
    """Those that were left out."""
    digests: dict[str, str]
    """Its files' SHA-256; no files if no picture could be read."""


def cache_features(
    source: Source,
    plan: CachePlan,
    output_dir: Path,
    *,
    device: torch.device,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> FeatureMeta:
    """Writes the merged tokens of every picture to shards, with the pictures beside them, index.parquet and meta.json.

    Whole shards of the same pictures are kept. An earlier cache of the same checkpoint, pictures and settings is
    replaced when all is made; a folder that holds anything else is a ValueError. Started by `accelerate launch`, the
    processes share the shards. A picture that cannot be read is left out and reported; more than 1 % of them is a
    ValueError, as is an image size that is no multiple of 28.
    """
    if plan.image_size < 28 or plan.image_size % 28:
        raise ValueError(f"image_size: {plan.image_size} is not a multiple of 28; 448 gives 256 tokens")
    if plan.batch_size < 1:
        raise ValueError(f"batch_size: {plan.batch_size} must be at least 1")
    require_apart(output_dir, [plan.pictures, source.folder])
    group = processes(cpu=device.type == "cpu")
    total = count_pictures(plan.pictures, limit=plan.limit)
    _require_pictures(plan, total)
    tower = load_vision_tower(source, device, plan.image_size)
    output_dir = through_links(output_dir)
    # The lock lies within: a volume may be mounted where nothing can lie beside it.
    with sole_writer(output_dir / JOB) if group.is_main else nullcontext():
        if group.is_main:
            job = _claim(output_dir, _job_of(source, plan, tower, output_dir))
        group.wait()
        identity = f"{tower.digest} {plan.image_size}"
        with progress("vision features", total, "pictures") as advance:
            for number, pictures in enumerate(_shards(plan)):
                if number % group.count == group.rank:
                    _cache_shard(output_dir, number, pictures, tower, plan, identity)
                advance(len(pictures))
        group.wait()
        if group.is_main:
            _finish(output_dir, -(-total // SHARD_PICTURES), job, plan)
        group.wait()
    meta = FeatureMeta(**read_json(output_dir / META))
    if group.is_main:
        log({"pictures": meta.count, "unreadable": len(meta.unreadable), "tokens": meta.tokens, "dim": meta.dim}, 0)
    return meta


class _Job(BaseModel, extra="forbid"):
    """What a cache is made of."""

    model: str
    revision: str | None
    weights: str
    """Digest: two checkpoints may have one name."""
    pictures: str
    image_size: int
    limit: int | None


def _job_of(source: Source, plan: CachePlan, tower: VisionTower, folder: Path) -> _Job:
    return _Job(
        model=_model_name(source),
        revision=source.revision,
        weights=tower.digest,
        pictures=plan.name or seen_from(folder, plan.pictures),
        image_size=plan.image_size,
        limit=plan.limit,
    )


def _model_name(source: Source) -> str:
    return source.name if Path(source.reference).is_absolute() else source.reference


def _claim(folder: Path, job: _Job) -> _Job:
    """Makes `folder` that of `job`, and returns it; a ValueError, before anything changes, if it is another's."""
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


def _first_name(folder: Path, found: _Job) -> str | None:
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


def _read_job(path: Path) -> _Job:
    try:
        return _Job.model_validate(read_json(path), strict=True)
    except ValidationError as e:
        raise ValueError(f"{path}: not the job of a feature cache; give another folder, or remove this one") from e


def _require_pictures(plan: CachePlan, total: int) -> None:
    """ValueError for a bad row or too many that are no pictures: found before an earlier cache is touched."""
    found = read_pictures(plan.pictures, limit=plan.limit)
    _require_few(plan, [picture.dataset_id for picture in found if not looks_like_a_picture(picture)], total)


def _require_few(plan: CachePlan, unreadable: list[str], total: int) -> None:
    if len(unreadable) > UNREADABLE_SHARE * total:
        raise ValueError(
            f"{plan.pictures}: {len(unreadable)} of {total} pictures cannot be read (first: {unreadable[0]});"
            " more than 1 % is an error: restore them or drop their rows"
        )


def _shards(plan: CachePlan) -> Iterator[list[Picture]]:
    found = read_pictures(plan.pictures, limit=plan.limit)
    while pictures := list(islice(found, SHARD_PICTURES)):
        yield pictures


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.json"


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    shard = shard_name(number)
    return folder / shard, folder / pictures_name(shard)


def _cache_shard(
    folder: Path, number: int, pictures: list[Picture], tower: VisionTower, plan: CachePlan, identity: str
) -> None:
    described = [[p.dataset_id, p.digest, p.bbox] for p in pictures]
    wanted = hashlib.sha256(json.dumps([identity, described]).encode()).hexdigest()
    pending = _record_path(folder / PENDING, number)
    if _is_complete(folder, number, wanted):
        pending.unlink(missing_ok=True)
        return
    if _is_complete(folder / PENDING, number, wanted):
        return
    features_file, pictures_file = files = _shard_files(folder / PENDING, number)
    for file in (pending, *files):
        file.unlink(missing_ok=True)
    squares, unreadable = _decoded(pictures, plan.image_size)
    entries = [_Entry(dataset_id=picture.dataset_id, sha256=picture.digest) for picture, _ in squares]
    if squares:
        images = torch.stack([s.pixels for _, s in squares])
        features = torch.cat([tower.features(batch) for batch in images.split(plan.batch_size)])
        if not torch.isfinite(features).all():
            bad = next(p for (p, _), x in zip(squares, features, strict=True) if not torch.isfinite(x).all())
            raise ValueError(f"{bad.dataset_id}: the vision tower gives NaN or Inf for this picture; leave it out")
        write_tensors(features_file, {TENSOR: features})
        _write_pictures(pictures_file, [s for _, s in squares])
    digests = {file.name: sha256_file(file) for file in files if squares}
    record = _Record(made_from=wanted, entries=entries, unreadable=unreadable, digests=digests)
    write_json(pending, record.model_dump())


def _is_complete(folder: Path, number: int, wanted: str) -> bool:
    """Whether the shard was made from the same, and its files are still whole."""
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


def _read_record(folder: Path, number: int) -> _Record:
    return _Record.model_validate(read_json(_record_path(folder, number)), strict=True)


def _decoded(pictures: list[Picture], size: int) -> tuple[list[tuple[Picture, SquarePicture]], list[str]]:
    squares, unreadable = [], []
    for picture in pictures:
        try:
            squares.append((picture, square(picture, size)))
        except ValueError:
            unreadable.append(picture.dataset_id)
    return squares, unreadable


def _write_pictures(path: Path, squares: list[SquarePicture]) -> None:
    """The pictures themselves, small, with their boxes: `visualize` needs no more than the cache."""
    rows = []
    for one in squares:
        buffer = BytesIO()
        Image.fromarray(one.pixels.numpy()).save(buffer, format="JPEG", quality=JPEG_QUALITY)
        rows.append({"image": buffer.getvalue(), "bbox": None if one.bbox is None else list(one.bbox)})
    write_if_changed(path, _as_parquet(pd.DataFrame(rows)))


def _finish(folder: Path, num_shards: int, job: _Job, plan: CachePlan) -> None:
    """Puts the new shards in their places, joins all to the index, and writes meta.json last: then it is complete."""
    pending = [number for number in range(num_shards) if _record_path(folder / PENDING, number).is_file()]
    records = [_read_record(folder / PENDING if n in pending else folder, n) for n in range(num_shards)]
    unreadable = [name for record in records for name in record.unreadable]
    rows = [
        {"dataset_id": entry.dataset_id, "sha256": entry.sha256, "shard": shard_name(number), "offset": offset}
        for number, record in enumerate(records)
        for offset, entry in enumerate(record.entries)
    ]
    _require_few(plan, unreadable, len(rows) + len(unreadable))
    table = pd.DataFrame(rows)
    table.insert(0, "row", range(len(table)))
    index = _as_parquet(table)
    if pending or not holds(folder / INDEX, index):
        (folder / META).unlink(missing_ok=True)
    for number in pending:
        _take_over(folder, number)
    _remove_leftovers(folder, num_shards)
    write_if_changed(folder / INDEX, index)
    first = read_header(folder / table["shard"][0]).info
    _, tokens, dim = first.shape
    meta = FeatureMeta(job.model, job.revision, plan.image_size, tokens, dim, first.dtype, len(table), unreadable)  # type: ignore[arg-type]
    write_json(folder / META, meta.as_json())


def _take_over(folder: Path, number: int) -> None:
    """Moves a shard out of the pending ones, its record last: without it the shard is neither the old nor the new."""
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
    """Shards of an earlier, larger cache, by their records, and what is left of the pending ones."""
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
