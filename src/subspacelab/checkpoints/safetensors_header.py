"""What a safetensors file says of itself in its first bytes: 8 for the header's length, then JSON, then the data."""

import json
import math
from dataclasses import dataclass
from typing import Any

from subspacelab.checkpoints.tensors import TensorInfo

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class Placed:
    """A tensor and where its bytes lie in the file."""

    info: TensorInfo
    """Name, shape, dtype."""
    start: int
    """Its first byte, counted from the beginning of the file."""

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.start + self.info.nbytes


def header_length(head: bytes | bytearray, file: str) -> int:
    """The header's length in bytes, from the file's first 8; ValueError if it cannot be one."""
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f"{file}: not a safetensors file (a header of {length} bytes); use another copy of it")
    return length


def parse_header(header: bytes | bytearray, file: str, shard: str) -> list[Placed]:
    """The tensors of a file in the order of their data; ValueError names `file` if the header is damaged."""
    data_start = LENGTH_BYTES + len(header)
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        placed = [_placed(name, entry, data_start, shard) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ValueError(f"{file}: damaged safetensors header ({e}); use another copy of it") from e
    placed.sort(key=lambda p: (p.start, p.stop, p.info.name))
    ends = [data_start, *(p.stop for p in placed)]
    wrong = next((p for end, p in zip(ends, placed, strict=False) if p.start != end), None)
    if wrong is not None:
        raise ValueError(
            f"{file}: damaged safetensors header ({wrong.info.name} does not begin where the tensor before it ends);"
            " use another copy of it"
        )
    return placed


def _placed(name: str, entry: dict[str, Any], data_start: int, shard: str) -> Placed:
    (start, stop), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), str(entry["dtype"])
    if not all(type(n) is int for n in (start, stop, *shape)):
        raise ValueError(f"{name}: shape {entry['shape']} and offsets {entry['data_offsets']} are not integers")
    nbytes = math.prod(shape) * bits(dtype) // 8
    if start < 0 or min(shape, default=0) < 0 or stop - start != nbytes:
        raise ValueError(f"{name} of shape {list(shape)} and dtype {dtype} in {stop - start} bytes")
    return Placed(TensorInfo(name, shape, dtype, nbytes, shard), data_start + start)


def bits(code: str) -> int:
    """Bits per entry of a safetensors dtype, e.g. 16 for "BF16", 8 for "F8_E4M3", 8 for "BOOL"."""
    if code == "BOOL":
        return 8
    return int("".join(filter(str.isdigit, code.partition("_")[0])))
