"""The pictures that a cache of features keeps beside them, as the tower saw them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from subspacelab.data.decoding import decode_rgb
from subspacelab.lowrank.features import Features, cache_again, read_table

SCHEMA = pa.schema([("image", pa.binary()), ("bbox", pa.list_(pa.float64(), 4))])


@dataclass(frozen=True)
class CachedPicture:
    """A picture as the tower saw it (compressed as a JPEG since)."""

    dataset_id: str
    """Its name in the data set."""
    pixels: Any
    """uint8 array [size, size, 3]."""
    bbox: tuple[float, ...] | None
    """x, y, width, height in these pixels."""


def pictures_name(shard: str) -> str:
    """The file that holds the pictures of a shard."""
    return shard.replace("features-", "pictures-").replace(".safetensors", ".parquet")


def read_picture(features: Features, row: int) -> CachedPicture:
    """The picture of a row, as it was cached."""
    shard, offset = features.location(row)
    path = features.folder / pictures_name(shard)
    try:
        found = read_table(path, SCHEMA)
        image, box = (found[name][offset].as_py() for name in SCHEMA.names)
        pixels = np.asarray(decode_rgb(image, "a kept picture"))
        corners = None if box is None else tuple(float(v) for v in box)
    except (ValueError, LookupError, TypeError) as e:
        raise ValueError(f"{path}: no picture of row {row} ({str(e).splitlines()[0]}); {cache_again(path)}") from e
    return CachedPicture(features.index["dataset_id"][row], pixels, corners)
