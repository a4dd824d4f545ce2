"""A cache of vision features: safetensors shards [n, tokens, dim], an index, and how it was made."""

import mmap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subspacelab.checkpoints.safetensors_header import LENGTH_BYTES, Placed, header_length, parse_header
from subspacelab.files import read_json
from subspacelab.lowrank.splits import Split, split_rows
from subspacelab.params import validate

INDEX, META = "index.parquet", "meta.json"
TENSOR = "features"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class FeatureMeta:
    """How a cache was made; meta.json."""

    model: str
    """Reference of the checkpoint."""
    revision: str | None
    """Its commit, for one of the hub."""
    image_size: int
    """Pixels per side of the squared pictures."""
    tokens: int
    """Merged tokens per picture; a square number."""
    dim: int
    """Width d of a token."""
    dtype: str
    """Storage type: F32, BF16 or F16."""
    count: int
    """Pictures in the cache."""
    unreadable: list[str]
    """dataset_id of each picture that could not be read and was left out."""

    @property
    def side(self) -> int:
        """Tokens per side of the picture."""
        return int(self.tokens**0.5)

    def as_json(self) -> dict[str, Any]:
        """The content of meta.json."""
        return asdict(self)


@dataclass(frozen=True)
class CachedPicture:
    """A picture as it went into the tower (JPEG-compressed since)."""

    dataset_id: str
    """Its name in the data set."""
    pixels: Any
    """uint8 array [size, size, 3]."""
    bbox: tuple[float, ...] | None
    """x, y, width, height in these pixels."""


class Features:
    """A cache opened for reading: rows by number, one copy of each in memory and nothing else.

    Files are mapped, and a row's pages are handed back as soon as it is copied: reading 4 GB leaves no 4 GB resident.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / META).is_file():
            raise ValueError(f"{folder}: no feature cache there ({META} is missing); make one with `lowrank cache`")
        self.folder = folder
        """Where the cache lies."""
        self.meta = _read_meta(folder / META)
        """How it was made."""
        self.index = _read_index(folder / INDEX)
        """row, dataset_id, sha256, shard, offset."""
        if len(self.index) != self.meta.count:
            raise ValueError(
                f"{folder}: {INDEX} has {len(self.index)} rows, {META} says {self.meta.count}; cache again"
            )
        self._shards = {name: _Shard(folder, name, self.meta) for name in sorted(set(self.index["shard"]))}
        for name, offsets in self.index.groupby("shard")["offset"]:
            if not offsets.between(0, self._shards[name].count - 1).all():
                raise ValueError(
                    f"{folder / INDEX}: offsets outside the {self._shards[name].count} rows of {name}; cache again"
                )
        self._places = list(zip(self.index["shard"], self.index["offset"], strict=True))

    def __len__(self) -> int:
        return self.meta.count

    def split(self, seed: int) -> dict[Split, list[int]]:
        """Rows of the train, validation and test pictures of a seed."""
        return split_rows(list(self.index["sha256"]), seed)

    def picture(self, row: int) -> "CachedPicture":
        """The picture behind a row, as it was cached."""
        shard, offset = self._places[row]
        path = self.folder / pictures_name(shard)
        try:
            found = pd.read_parquet(path, columns=["image", "bbox"]).iloc[offset]
            box = None if found["bbox"] is None else tuple(float(v) for v in found["bbox"])
            image = np.asarray(Image.open(BytesIO(found["image"])).convert("RGB"))
        except (OSError, ValueError, TypeError, LookupError) as e:  # what pyarrow and Pillow raise is among them
            raise ValueError(f"{path}: no picture of row {row} ({str(e).splitlines()[0]}); cache again") from e
        return CachedPicture(self.index["dataset_id"][row], image, box)

    def will_need(self, rows: Sequence[int]) -> None:
        """Tells the system which rows are read next."""
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
            raise ValueError(f"{folder / INDEX}: shard {name!r} is not a file name; cache again")
        if not path.is_file():
            raise ValueError(f"{path}: shard is missing; cache again")
        placed = read_header(path)
        found = placed.info
        if found.shape[1:] != (meta.tokens, meta.dim) or found.dtype != meta.dtype:
            raise ValueError(f"{path}: {found.dtype} {list(found.shape)} does not fit {META}; cache again")
        self._dtype, self._shape = DTYPES[found.dtype], (meta.tokens, meta.dim)
        self._start, self.count = placed.start, found.shape[0]
        self._bytes = meta.tokens * meta.dim * self._dtype.itemsize
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if placed.stop > len(self._map):
            raise ValueError(f"{path}: truncated; cache again")

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


def pictures_name(shard: str) -> str:
    """The file that holds the pictures of a shard."""
    return shard.replace("features-", "pictures-").replace(".safetensors", ".parquet")


def read_header(path: Path) -> Placed:
    """Dtype, shape and place of the one tensor of a shard."""
    try:
        with path.open("rb") as file:
            header = file.read(header_length(file.read(LENGTH_BYTES), path.name))
        return {p.info.name: p for p in parse_header(header, path.name, path.name)}[TENSOR]
    except (ValueError, KeyError) as e:
        raise ValueError(f"{path}: truncated or no feature shard ({e}); cache again") from e


def _read_index(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=["row", "dataset_id", "sha256", "shard", "offset"])
    except (OSError, ValueError) as e:  # pyarrow's errors are among them
        raise ValueError(f"{path}: missing or broken ({str(e).splitlines()[0]}); cache again") from e


def _read_meta(path: Path) -> FeatureMeta:
    content = read_json(path)
    try:
        FeatureMeta(**content)
    except TypeError as e:
        raise ValueError(f"{path}: not the {META} of a feature cache ({e}); cache again") from e
    meta = validate(FeatureMeta, content, where=str(path))
    if meta.dtype not in DTYPES or min(meta.tokens, meta.dim, meta.count) < 1:
        raise ValueError(f"{path}: dtype must be one of {list(DTYPES)}, tokens, dim and count at least 1; cache again")
    return meta
