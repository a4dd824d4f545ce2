"""Vision features of many pictures, written shard by shard, continued where it was stopped."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from subspacelab.checkpoints import Source, write_tensors
from subspacelab.data.pictures import (
    Picture,
    SquarePicture,
    count_pictures,
    looks_like_a_picture,
    read_pictures,
    square,
)
from subspacelab.distributed import processes
from subspacelab.files import read_json, remove_partials, sha256_file, write_beside, write_json
from subspacelab.lowrank.features import INDEX, META, TENSOR, FeatureMeta, pictures_name, read_header, shard_name
from subspacelab.models.vision_tower import VisionTower, load_vision_tower
from subspacelab.reports.progress import progress_bar

Log = Callable[[Mapping[str, float], int], None]
SHARD_PICTURES = 64
UNREADABLE_SHARE = 0.01  # more than this is an error: it is the wrong path, or a broken data set
JPEG_QUALITY = 90  # of the pictures kept for looking at


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


def cache_features(
    source: Source, plan: CachePlan, output_dir: Path, *, device: torch.device, log: Log | None = None
) -> FeatureMeta:
    """Writes the merged tokens of every picture to shards, with the pictures beside them, index.parquet and meta.json.

    Complete shards of the same checkpoint, size and pictures are kept. Started by `accelerate launch`, the processes
    share the shards. A picture that cannot be read is left out and reported; more than 1 % of them is a ValueError,
    as is an image size that is no multiple of 28.
    """
    if plan.image_size < 28 or plan.image_size % 28:
        raise ValueError(f"image_size: {plan.image_size} is not a multiple of 28; 448 gives 256 tokens")
    if plan.batch_size < 1:
        raise ValueError(f"batch_size: {plan.batch_size} must be at least 1")
    group = processes(cpu=device.type == "cpu")
    total = count_pictures(plan.pictures, limit=plan.limit)
    _require_pictures(plan, total)
    tower = load_vision_tower(source, device)
    output_dir.mkdir(parents=True, exist_ok=True)
    if group.is_main:
        (output_dir / META).unlink(missing_ok=True)
    identity = f"{_identity(source)} {plan.image_size}"
    with progress_bar("vision features", total=total, unit="pictures") as advance:
        for number, pictures in enumerate(_shards(plan)):
            if number % group.count == group.rank:
                _cache_shard(output_dir, number, pictures, tower, plan, identity)
            advance(len(pictures))
    group.wait()
    if group.is_main:
        _finish(output_dir, -(-total // SHARD_PICTURES), source, plan)
    group.wait()
    meta = FeatureMeta(**json.loads((output_dir / META).read_text(encoding="utf-8")))
    if log is not None and group.is_main:
        log({"pictures": meta.count, "unreadable": len(meta.unreadable), "tokens": meta.tokens, "dim": meta.dim}, 0)
    return meta


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


def _identity(source: Source) -> str:
    """Digest of the checkpoint's files: features of other weights must not be taken for these."""
    files = sorted(p for p in source.folder.rglob("*") if p.is_file()) if source.folder.is_dir() else [source.folder]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.json"


def _cache_shard(
    folder: Path, number: int, pictures: list[Picture], tower: VisionTower, plan: CachePlan, identity: str
) -> None:
    described = [[p.dataset_id, p.digest, p.bbox] for p in pictures]
    wanted = hashlib.sha256(json.dumps([identity, described]).encode()).hexdigest()
    record = _record_path(folder, number)
    if _is_complete(record, wanted):
        return
    files = [folder / shard_name(number), folder / pictures_name(shard_name(number))]
    for file in (record, *files):  # the record first: without it the shard is neither the old nor the new one
        file.unlink(missing_ok=True)
    squares, unreadable = _decoded(pictures, plan.image_size)
    entries = [{"dataset_id": picture.dataset_id, "sha256": picture.digest} for picture, _ in squares]
    if squares:
        images = torch.stack([s.pixels for _, s in squares])
        features = torch.cat([tower.features(batch) for batch in images.split(plan.batch_size)])
        if not torch.isfinite(features).all():
            bad = next(p for (p, _), x in zip(squares, features, strict=True) if not torch.isfinite(x).all())
            raise ValueError(f"{bad.dataset_id}: the vision tower gives NaN or Inf for this picture; leave it out")
        write_tensors(files[0], {TENSOR: features})
        _write_pictures(files[1], [s for _, s in squares])
    # The record comes last: with it the shard is complete.
    sizes = {file.name: file.stat().st_size for file in files if file.exists()}
    write_json(record, {"made_from": wanted, "entries": entries, "unreadable": unreadable, "sizes": sizes})


def _is_complete(record: Path, wanted: str) -> bool:
    """Whether the shard was made from the same, and its files are still whole."""
    content = read_json(record) if record.is_file() else {}
    if content.get("made_from") != wanted:
        return False
    files = {record.with_name(name): size for name, size in content["sizes"].items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


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
    _write_parquet(path, pd.DataFrame(rows))


def _finish(folder: Path, num_shards: int, source: Source, plan: CachePlan) -> None:
    """Joins the shards' records to the index, and writes meta.json last: with it the cache is complete."""
    rows, unreadable = [], []
    for number in range(num_shards):
        record = json.loads(_record_path(folder, number).read_text(encoding="utf-8"))
        unreadable += record["unreadable"]
        rows += [
            {
                "dataset_id": entry["dataset_id"],
                "sha256": entry["sha256"],
                "shard": shard_name(number),
                "offset": offset,
            }
            for offset, entry in enumerate(record["entries"])
        ]
    _require_few(plan, unreadable, len(rows) + len(unreadable))
    index = pd.DataFrame(rows)
    index.insert(0, "row", range(len(index)))
    _write_parquet(folder / INDEX, index)
    _remove_leftovers(folder, num_shards)
    first = read_header(folder / index["shard"][0]).info
    _, tokens, dim = first.shape
    reference = source.name if Path(source.reference).is_absolute() else source.reference
    meta = FeatureMeta(reference, source.revision, plan.image_size, tokens, dim, first.dtype, len(index), unreadable)
    write_json(folder / META, meta.as_json())


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    with write_beside(path) as partial:
        table.to_parquet(partial, index=False)


def _remove_leftovers(folder: Path, num_shards: int) -> None:
    """Shards of an earlier, larger cache, and what a killed run left half-written."""
    remove_partials(folder)
    current = {_record_path(folder, number).stem for number in range(num_shards)}
    for record in folder.glob("features-*.json"):
        if record.stem not in current:
            shard = shard_name(int(record.stem.rpartition("-")[2]))
            for path in (record, folder / shard, folder / pictures_name(shard)):
                path.unlink(missing_ok=True)
