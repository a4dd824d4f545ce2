"""What a safetensors file says of itself in its first bytes: 8 for the header's length, then JSON, then the data."""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from subspacelab.checkpoints.payload import checked_json
from subspacelab.checkpoints.tensors import TensorInfo

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


class Entry(BaseModel):
    """What the header says of one tensor."""

    dtype: str = Field(pattern=r"^(BOOL|[A-Z]+[1-9][0-9]{0,2}(_\w+)?)$")
    shape: list[Annotated[int, Field(ge=0, lt=1 << 63)]] = Field(max_length=64)  # more axes than torch takes
    data_offsets: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)

    @property
    def num_bytes(self) -> int:
        """How many bytes of the file it takes."""
        return self.data_offsets[1] - self.data_offsets[0]


HEADER = TypeAdapter(dict[str, Entry | dict[str, str] | None])
"""By name; `__metadata__` alone is a mapping of texts, or null."""


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
    damaged, remedy = f"{file}: damaged safetensors header", "use another copy of it"
    content = checked_json(header, HEADER, damaged, "a table of tensors", remedy)
    if isinstance(content.pop("__metadata__", None), Entry):
        raise ValueError(f"{damaged} (__metadata__ is no mapping of texts); {remedy}")
    entries = {name: entry for name, entry in content.items() if isinstance(entry, Entry)}
    if len(entries) < len(content):
        raise ValueError(f"{damaged} ({next(name for name in content if name not in entries)} has no shape); {remedy}")
    placed = [_placed(name, entry, data_start, shard) for name, entry in entries.items()]
    wrong_size = next((p for p in placed if p.info.nbytes != entries[p.info.name].num_bytes), None)
    if wrong_size is not None:
        info, stored = wrong_size.info, entries[wrong_size.info.name].num_bytes
        raise ValueError(
            f"{damaged} ({info.name} of shape {list(info.shape)} and dtype {info.dtype} in {stored} bytes); {remedy}"
        )
    placed.sort(key=lambda p: (p.start, p.stop, p.info.name))
    ends = [data_start, *(p.stop for p in placed)]
    wrong = next((p for end, p in zip(ends, placed, strict=False) if p.start != end), None)
    if wrong is not None:
        raise ValueError(f"{damaged} ({wrong.info.name} does not begin where the tensor before it ends); {remedy}")
    return placed


def _placed(name: str, entry: Entry, data_start: int, shard: str) -> Placed:
    nbytes = math.prod(entry.shape) * bits(entry.dtype) // 8
    return Placed(TensorInfo(name, tuple(entry.shape), entry.dtype, nbytes, shard), data_start + entry.data_offsets[0])


def bits(code: str) -> int:
    """Bits per entry of a safetensors dtype, e.g. 16 for "BF16", 8 for "F8_E4M3", 8 for "BOOL"."""
    if code == "BOOL":
        return 8
    return int("".join(filter(str.isdigit, code.partition("_")[0])))
