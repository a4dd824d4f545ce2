"""Vision features of many pictures, shard by shard: decoded ahead, computed and written; interrupted runs continue."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from subspacelab.checkpoints import Source, Weights, open_checkpoint
from subspacelab.core.callbacks import Advance, Log, Progress, no_log, no_progress
from subspacelab.core.devices import Processes, choose_device, processes
from subspacelab.core.files import read_json, seen_from, through_links
from subspacelab.core.ownership import require_apart
from subspacelab.data.decode_pool import DecodePool, choose_workers
from subspacelab.data.pictures import Picture, SquarePicture, count_pictures, looks_like_a_picture, read_pictures
from subspacelab.data.references import resolve_pictures
from subspacelab.lowrank.cache import CacheJob, finish_cache, is_made, read_records, sole_cache_writer, write_shard
from subspacelab.lowrank.features import META, FeatureMeta, Features
from subspacelab.models.vision_tower import VisionTower, load_vision_tower

T = TypeVar("T")

SHARD_PICTURES = 64
Readable = tuple[Picture, SquarePicture]
UNREADABLE_SHARE = 0.01  # more than this is an error: it is the wrong path, or a broken data set


@dataclass(frozen=True)
class CachePlan:
    """What is cached, and how."""

    pictures: Path
    """A parquet file or folder, a .jsonl, or a folder of pictures."""
    image_size: int = 448
    """Pixels per side; a multiple of 28."""
    limit: int | None = None
    """Only the first pictures."""
    batch_size: int = 8
    """Pictures per pass of the tower."""
    name: str | None = None
    """Name of the pictures, which distinguishes their cache from others; default: their path from the cache."""
    decode_workers: int | None = 0
    """Processes that decode; 0 decodes in this one, None chooses by the cores and the number of pictures."""


@dataclass(frozen=True)
class Throughput:
    """Speed of this process for the shards that were missing, and its bottleneck."""

    pictures: int
    """Number of pictures in these shards."""
    seconds: float
    """From the first shard to the last, writing included."""
    tower_seconds: float
    """Time of the tower alone."""
    decode_seconds: float
    """Time that decoding alone would have taken with all its processes."""
    decode_workers: int
    """Number of decoding processes; 0: decoding in between."""
    num_processes: int = 1
    """Number of processes that share the shards, each with its own throughput."""

    @property
    def is_decode_bound(self) -> bool:
        """Whether decoding alone takes longer than the tower alone."""
        return self.decode_seconds > self.tower_seconds


@dataclass(frozen=True)
class Cached:
    """A complete cache."""

    meta: FeatureMeta
    """How it was made."""
    throughput: Throughput | None
    """Speed; None if nothing was left to do."""


def extract(
    checkpoint: Weights,
    pictures: Path | str,
    *,
    image_size: int = 448,
    limit: int | None = None,
    batch_size: int = 8,
    decode_workers: int | None = None,
    output_dir: Path | str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Features:
    """The merged vision tokens of every picture, X [tokens, dim] each; the language model is never read.

    `checkpoint`: a Qwen2.5-VL by reference, path or opened; of one on the hub only the tower is fetched. `pictures`: a
    parquet file or folder, a .jsonl, a folder of pictures, or a data set of the hub. `image_size`: pixels per side, 448
    gives 256 tokens. `decode_workers`: processes that decode meanwhile, None for as many as there are cores to spare.
    With `output_dir` the cache is kept there, and one that was cut short goes on; without, it goes
    with the object.

    Raises CheckpointError or ValueError in one line, as `cache_features` does.

        x = extract("Qwen/Qwen2.5-VL-3B-Instruct", "pictures", output_dir="features")
        x.shape, x[0]
    """
    plan = CachePlan(resolve_pictures(str(pictures)), image_size, limit, batch_size, decode_workers=decode_workers)
    temporary = None if output_dir is not None else TemporaryDirectory(prefix="subspacelab-")
    folder = Path(output_dir if temporary is None else temporary.name)  # type: ignore[arg-type]
    cache_features(checkpoint, plan, folder, device=choose_device(device), progress=progress)
    return Features(folder, kept_by=temporary)


def cache_features(
    weights: Weights,
    plan: CachePlan,
    output_dir: Path,
    *,
    device: torch.device,
    log: Log = no_log,
    progress: Progress = no_progress,
) -> Cached:
    """Writes the merged tokens of every picture to shards, with the pictures beside them, index.parquet and meta.json.

    Whole shards of the same pictures are kept. An earlier cache of the same checkpoint, pictures and settings is
    replaced when all is made; a folder that holds anything else is a ValueError. Started by `accelerate launch`, the
    processes share the shards. A picture that cannot be read is left out and reported; more than 1 % of them is a
    ValueError, as is an image size that is no multiple of 28. How many processes decode changes no byte.
    """
    if plan.image_size < 28 or plan.image_size % 28:
        raise ValueError(f"image_size: {plan.image_size} is not a multiple of 28; 448 gives 256 tokens")
    if plan.batch_size < 1:
        raise ValueError(f"batch_size: {plan.batch_size} must be at least 1")
    checkpoint = open_checkpoint(weights)
    require_apart(output_dir, [plan.pictures, checkpoint.source.folder])
    group = processes(cpu=device.type == "cpu")
    total = count_pictures(plan.pictures, limit=plan.limit)
    _require_pictures(plan, total)
    tower = load_vision_tower(checkpoint, device, plan.image_size)
    output_dir = through_links(output_dir)
    job = _job_of(checkpoint.source, plan, tower, output_dir)
    with sole_cache_writer(output_dir, job, is_main=group.is_main) as job:
        group.wait()
        with (
            DecodePool(_num_workers(plan, total, group)) as pool,
            progress("vision features", total, "pictures") as advance,
        ):
            throughput = _Extraction(plan, output_dir, tower, pool).run(group, advance)
        group.wait()
        if group.is_main:
            records = read_records(output_dir, -(-total // SHARD_PICTURES))
            _require_few(plan, [name for record in records for name in record.unreadable], total)
            finish_cache(output_dir, records, job)
        group.wait()
    meta = FeatureMeta(**read_json(output_dir / META))
    if group.is_main:
        log({"pictures": meta.count, "unreadable": len(meta.unreadable), "tokens": meta.tokens, "dim": meta.dim}, 0)
    return Cached(meta, throughput)


def _job_of(source: Source, plan: CachePlan, tower: VisionTower, folder: Path) -> CacheJob:
    return CacheJob(
        model=source.name if Path(source.reference).is_absolute() else source.reference,
        revision=source.revision,
        weights=tower.digest,
        pictures=plan.name or seen_from(folder, plan.pictures),
        image_size=plan.image_size,
        limit=plan.limit,
    )


def _require_pictures(plan: CachePlan, total: int) -> None:
    """ValueError for a bad row or too many unreadable pictures, before an earlier cache is changed."""
    found = read_pictures(plan.pictures, limit=plan.limit)
    _require_few(plan, [picture.dataset_id for picture in found if not looks_like_a_picture(picture)], total)


def _require_few(plan: CachePlan, unreadable: list[str], total: int) -> None:
    if len(unreadable) > UNREADABLE_SHARE * total:
        raise ValueError(
            f"{plan.pictures}: {len(unreadable)} of {total} pictures cannot be read (first: {unreadable[0]});"
            " more than 1 % is an error: restore them or drop their rows"
        )


def _num_workers(plan: CachePlan, total: int, group: Processes) -> int:
    """As asked; by default none for one shard, which would be waited for as a whole."""
    if plan.decode_workers is not None:
        return plan.decode_workers
    return choose_workers(group.count) if total > SHARD_PICTURES * group.count else 0


@dataclass(frozen=True)
class _Shard:
    """A shard to be made; its pictures are being decoded."""

    number: int
    made_from: str
    pictures: list[Picture]
    squares: list[Callable[[], SquarePicture]]
    """Decoded pictures; reading one waits for its decoding and raises ValueError if it is not a picture."""


class _Extraction:
    """One process's part: while the tower computes a shard, the next is decoded and the last is written."""

    def __init__(self, plan: CachePlan, folder: Path, tower: VisionTower, pool: DecodePool) -> None:
        self.plan, self.folder, self.tower, self.pool = plan, folder, tower, pool
        self.tower_seconds = 0.0

    def run(self, group: Processes, advance: Advance) -> Throughput | None:
        """Makes the missing shards of this process; None if there are none."""
        begin, count = perf_counter(), 0
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer:
            for shard in _one_ahead(self._missing(group, advance)):
                made = self._compute(shard)
                if writing is not None:
                    writing.result()
                writing = writer.submit(write_shard, self.folder, shard.number, shard.made_from, *made)
                count += len(shard.pictures)
                advance(len(shard.pictures))
        if writing is None:
            return None
        writing.result()
        times = perf_counter() - begin, self.tower_seconds, self.pool.seconds
        return Throughput(count, *times, self.pool.num_workers, group.count)

    def _missing(self, group: Processes, advance: Advance) -> Iterator[_Shard]:
        found = read_pictures(self.plan.pictures, limit=self.plan.limit)
        identity, number = f"{self.tower.digest} {self.plan.image_size}", 0
        while pictures := list(islice(found, SHARD_PICTURES)):
            described = [[p.dataset_id, p.digest, p.bbox] for p in pictures]
            made_from = hashlib.sha256(json.dumps([identity, described]).encode()).hexdigest()
            if number % group.count == group.rank and not is_made(self.folder, number, made_from):
                squares = [self.pool.begin(picture, self.plan.image_size) for picture in pictures]
                yield _Shard(number, made_from, pictures, squares)
            else:
                advance(len(pictures))
            number += 1

    def _compute(self, shard: _Shard) -> tuple[Tensor | None, list[Readable], list[str]]:
        """Features [n, tokens, dim] of the pictures that can be read, these, and the names of the others.

        ValueError names a picture whose features are no numbers.
        """
        unreadable: list[str] = []
        readable: list[Readable] = []
        found: list[Tensor] = []
        decoded = _decoded(shard, unreadable)
        while batch := list(islice(decoded, self.plan.batch_size)):
            begin = perf_counter()
            found.append(self.tower.features(torch.stack([square.pixels for _, square in batch])))
            self.tower_seconds += perf_counter() - begin
            readable += batch
            finite = torch.isfinite(found[-1]).flatten(1).all(1)
            if not finite.all():
                bad = batch[finite.tolist().index(False)][0].dataset_id
                raise ValueError(f"{bad}: the vision tower gives NaN or Inf for this picture; leave it out")
        return torch.cat(found) if found else None, readable, unreadable


def _decoded(shard: _Shard, unreadable: list[str]) -> Iterator[Readable]:
    """The pictures with their squares, as they are decoded; the names of those that cannot be go to `unreadable`."""
    for picture, square in zip(shard.pictures, shard.squares, strict=True):
        try:
            decoded = square()
        except ValueError:
            unreadable.append(picture.dataset_id)
        else:
            yield picture, decoded


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Each item, once the next has been taken."""
    waiting = deque(islice(items, 1))
    while waiting:
        waiting.extend(islice(items, 1))
        yield waiting.popleft()
