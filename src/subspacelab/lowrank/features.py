"""A cache of vision features: safetensors shards [n, tokens, dim], an index, their origin, and the splits."""

import hashlib
import math
import mmap
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from subspacelab.checkpoints.safetensors_file import LENGTH_BYTES, TensorLocation, header_length, parse_header
from subspacelab.core.files import read_json, replace_folder, require_regular, sha256_file
from subspacelab.core.ownership import require_own_entries
from subspacelab.core.parquet import require_bounded
from subspacelab.core.settings import validate

Split = Literal["train", "validation", "test"]
SHARE = 10  # one tenth each for validation and test


def split_rows(digests: Sequence[str], seed: int) -> dict[Split, list[int]]:
    """Rows of each split, 80/10/10 of the distinct pictures (at least one each), in the order of the rows.

    `digests` name the pictures; equal ones go together. The order of the draw is that of SHA-256(seed, digest), so it
    does not depend on the order or the number of copies.
    """
    pictures = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
    if len(pictures) < 3:
        raise ValueError(f"{len(pictures)} distinct pictures cannot be split in three; cache at least 3")
    tenth = max(1, round(len(pictures) / SHARE))
    test, validation = set(pictures[:tenth]), set(pictures[tenth : 2 * tenth])
    rows: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    for row, digest in enumerate(digests):
        rows["test" if digest in test else "validation" if digest in validation else "train"].append(row)
    return rows


INDEX, META = "index.parquet", "meta.json"
JOB = "job.json"
"""File with the sources and settings of a cache, which shows that the folder belongs to `lowrank cache`."""
INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("dataset_id", pa.string()),
        ("sha256", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
    ]
)
TENSOR = "features"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class FeatureMeta:
    """How a cache was made; meta.json."""

    model: str
    """Reference of the checkpoint."""
    revision: str | None
    """Its commit, for one of the hub."""
    image_size: Annotated[int, Field(ge=1)]
    """Pixels per side of the squared pictures."""
    tokens: Annotated[int, Field(ge=1)]
    """Merged tokens per picture; a square number."""
    dim: Annotated[int, Field(ge=1)]
    """Width d of a token."""
    dtype: Literal["F32", "BF16", "F16"]
    """Storage type."""
    count: Annotated[int, Field(ge=1)]
    """Pictures in the cache."""
    unreadable: list[str]
    """dataset_id of each picture that could not be read and was left out."""

    @property
    def side(self) -> int:
        """Tokens per side of the picture."""
        return math.isqrt(self.tokens)

    @property
    def full_rank(self) -> int:
        """min(tokens, dim), the largest possible rank."""
        return min(self.tokens, self.dim)

    def describe_rank(self, rank: int) -> str:
        """A rank with the largest possible one: "rank 128 of 256"."""
        return f"rank {rank} of {self.full_rank}"

    def as_json(self) -> dict[str, Any]:
        """The content of meta.json."""
        return asdict(self)


class Features:
    """A cache opened for reading: rows by number, one copy of each in memory and nothing else.

    Files are mapped, and a row's pages are handed back as soon as it is copied: reading 4 GB leaves no 4 GB resident.
    `features[3]` is a picture's X [tokens, dim] in float32, `features[:8]` eight of them, `features.index` the table.
    """

    def __init__(self, folder: Path | str, *, kept_by: Any = None) -> None:
        """Opens the cache in `folder`; `kept_by` is held on to, such as a temporary folder that goes with this."""
        folder = Path(folder)
        if not (folder / META).is_file():
            raise ValueError(f"{folder}: no feature cache there ({META} is missing); make one with `lowrank cache`")
        self.folder = folder
        """Folder of the cache."""
        self._kept_by = kept_by
        self.meta = _read_meta(folder / META)
        """How the cache was made."""
        self.index = _read_index(folder / INDEX, self.meta)
        """row, dataset_id, sha256, shard, offset."""
        self._shards = {name: _Shard(folder, name, self.meta) for name in sorted(set(self.index["shard"]))}
        for name, offsets in self.index.groupby("shard")["offset"]:
            if not offsets.between(0, self._shards[name].count - 1).all():
                outside = f"offsets outside the {self._shards[name].count} rows of {name}"
                raise ValueError(f"{folder / INDEX}: {outside}; {cache_again(folder)}")
        self._places = list(zip(self.index["shard"], self.index["offset"], strict=True))

    def __repr__(self) -> str:
        return f"<Features {self.folder}: {len(self)} pictures of [{self.meta.tokens}, {self.meta.dim}]>"

    def __len__(self) -> int:
        return self.meta.count

    def __getitem__(self, row: int | slice) -> Float[Tensor, "*batch tokens dim"]:
        """The features of one picture, or of a slice of them, in float32; IndexError for a row there is not."""
        rows = range(len(self))[row]
        return self.read(rows) if isinstance(rows, range) else self.read([rows])[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[pictures, tokens, dim]."""
        return len(self), self.meta.tokens, self.meta.dim

    def save(self, folder: Path | str) -> None:
        """Copies the cache to `folder`, whole or not at all; ValueError if something is already there."""
        require_own_entries(Path(folder), (), "a copy of a feature cache")
        with replace_folder(Path(folder)) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: Path | str) -> "Features":
        """Opens what `save`, `extract` or `lowrank cache` wrote."""
        return cls(folder)

    def require_whole(self) -> None:
        """ValueError if a shard differs from the digest in its record."""
        for name in self._shards:
            path = self.folder / name
            record = path.with_suffix(".json")
            if record.is_file() and _read_digests(record).get(name) != sha256_file(path):
                raise ValueError(f"{path}: changed or damaged since it was cached; {cache_again(path)}")

    def digest(self) -> str:
        """Identifies the features of a cache: their pictures, how they were made, and their order."""
        return " ".join(sha256_file(self.folder / name) for name in (META, INDEX))

    def split(self, seed: int) -> dict[Split, list[int]]:
        """Rows of the train, validation and test pictures of a seed."""
        return split_rows(list(self.index["sha256"]), seed)

    def location(self, row: int) -> tuple[str, int]:
        """Name of the shard that holds a row, and its place in there."""
        return self._places[row]

    def will_need(self, rows: Sequence[int]) -> None:
        """Announces to the system which rows are read next."""
        for row in rows:
            shard, offset = self._places[row]
            self._shards[shard].advise(offset, "MADV_WILLNEED")

    def read(self, rows: Sequence[int]) -> Float[Tensor, "batch tokens dim"]:
        """The features of some rows in float32."""
        out = torch.empty(len(rows), self.meta.tokens, self.meta.dim)
        for place, row in zip(out, rows, strict=True):
            shard, offset = self._places[row]
            self._shards[shard].copy_to(place, offset)
        return out


class _Shard:
    """One mapped file."""

    def __init__(self, folder: Path, name: str, meta: FeatureMeta) -> None:
        path = folder / name
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX}: shard {name!r} is not a file name; {cache_again(folder)}")
        if not path.is_file():
            raise ValueError(f"{path}: shard is missing; {cache_again(path)}")
        placed = read_header(path)
        found = placed.info
        if found.shape[1:] != (meta.tokens, meta.dim) or found.dtype != meta.dtype:
            raise ValueError(f"{path}: {found.dtype} {list(found.shape)} does not fit {META}; {cache_again(path)}")
        self._dtype, self._shape = DTYPES[found.dtype], (meta.tokens, meta.dim)
        self._start, self.count = placed.start, found.shape[0]
        self._bytes = meta.tokens * meta.dim * self._dtype.itemsize
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if placed.stop > len(self._map):
            raise ValueError(f"{path}: truncated; {cache_again(path)}")

    def copy_to(self, out: Tensor, row: int) -> None:
        first = self._start + row * self._bytes
        # A slice of a map is a copy; frombuffer would keep the pages.
        raw = bytearray(self._map[first : first + self._bytes])
        out.copy_(torch.frombuffer(raw, dtype=self._dtype).view(self._shape))
        self.advise(row, "MADV_DONTNEED")

    def advise(self, row: int, advice: str) -> None:
        """madvise(2) for the pages of a row, where the system has it."""
        if hasattr(mmap, advice):
            first = self._start + row * self._bytes
            page = first - first % mmap.PAGESIZE
            self._map.madvise(getattr(mmap, advice), page, first + self._bytes - page)


def shard_name(number: int) -> str:
    """`features-00000.safetensors`."""
    return f"features-{number:05d}.safetensors"


def read_header(path: Path) -> TensorLocation:
    """Dtype, shape and place of the one tensor of a shard."""
    try:
        with path.open("rb") as file:
            header = file.read(header_length(file.read(LENGTH_BYTES), path.name))
        return {p.info.name: p for p in parse_header(header, path.name, path.name)}[TENSOR]
    except (ValueError, KeyError) as e:
        raise ValueError(f"{path}: truncated or no feature shard ({e}); {cache_again(path)}") from e


def _read_index(path: Path, meta: FeatureMeta) -> pd.DataFrame:
    """The index in its own types; its rows are those of meta.json, and their features fit into the shards' bytes."""
    require_regular(path)
    try:
        num_rows = pq.read_metadata(path).num_rows  # before they are read: a few bytes may stand for millions
        index = read_table(path, INDEX_SCHEMA) if num_rows == meta.count else None
    except (ValueError, OSError) as e:
        raise ValueError(f"{path}: missing or broken ({str(e).splitlines()[0]}); {cache_again(path)}") from e
    if index is None:
        raise ValueError(f"{path.parent}: {INDEX} has {num_rows} rows, {META} says {meta.count}; {cache_again(path)}")
    found: pd.DataFrame = index.to_pandas()
    return found


class _Digests(BaseModel):
    """Of a shard's record, what is asked here."""

    digests: dict[str, str]


def _read_digests(record: Path) -> dict[str, str]:
    try:
        return _Digests.model_validate(read_json(record)).digests
    except ValidationError as e:
        raise ValueError(f"{record}: not the record of a shard; {cache_again(record)}") from e


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its types; a ValueError says what is not so. Only `bbox` may be null."""
    require_bounded(path, schema.names)
    try:
        table = pq.read_table(path, columns=schema.names).select(schema.names).cast(schema)
    except (OSError, LookupError, pa.ArrowException) as e:
        raise ValueError(str(e)) from e
    empty = next((name for name in schema.names if name != "bbox" and table[name].null_count), None)
    if empty is not None:
        raise ValueError(f"null in column {empty!r}")
    return table


def cache_again(place: Path) -> str:
    """The remedy if a cache's folder, or a file in it, is damaged: a cache of an older version cannot be replaced."""
    folder = place if place.is_dir() else place.parent
    return "cache again" if (folder / JOB).is_file() else "cache again, into a new folder"


def _read_meta(path: Path) -> FeatureMeta:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not the {META} of a feature cache; {cache_again(path)}")
    meta = validate(FeatureMeta, content, where=str(path))
    if meta.side**2 != meta.tokens:
        raise ValueError(f"{path}: tokens {meta.tokens} is not a square number; {cache_again(path)}")
    return meta
