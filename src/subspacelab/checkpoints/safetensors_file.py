"""A safetensors file read by byte ranges, from a disk or a server: its header, then only the requested tensors."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor

from subspacelab.checkpoints.tensors import DTYPE_CODES, TensorInfo
from subspacelab.checkpoints.validation import checked_json
from subspacelab.core.errors import CheckpointError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


class Entry(BaseModel):
    """The header's entry for one tensor."""

    dtype: str = Field(pattern=r"^(BOOL|[A-Z]+[1-9][0-9]{0,2}(_\w+)?)$")
    shape: list[Annotated[int, Field(ge=0, lt=1 << 63)]] = Field(max_length=64)  # more axes than torch takes
    data_offsets: list[Annotated[int, Field(ge=0)]] = Field(min_length=2, max_length=2)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in the file."""
        return self.data_offsets[1] - self.data_offsets[0]


HEADER = TypeAdapter(dict[str, Entry | dict[str, str] | None])
"""Entries by name; the key `__metadata__` holds a mapping of texts, or null."""


@dataclass(frozen=True)
class TensorLocation:
    """A tensor and the position of its bytes in the file."""

    info: TensorInfo
    """Name, shape and dtype."""
    start: int
    """Position of its first byte, counted from the beginning of the file."""

    @property
    def stop(self) -> int:
        """Position after its last byte."""
        return self.start + self.info.nbytes


def header_length(head: bytes | bytearray, file: str) -> int:
    """Length of the header in bytes, from the file's first 8 bytes; ValueError if the value is impossible."""
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(f"{file}: not a safetensors file (a header of {length} bytes); use another copy of it")
    return length


def parse_header(header: bytes | bytearray, file: str, shard: str) -> list[TensorLocation]:
    """The tensors of a file in the order of their data; ValueError names `file` if the header is damaged."""
    data_start = LENGTH_BYTES + len(header)
    damaged, remedy = f"{file}: damaged safetensors header", "use another copy of it"
    content = checked_json(header, HEADER, damaged, "a table of tensors", remedy)
    if isinstance(content.pop("__metadata__", None), Entry):
        raise CheckpointError(f"{damaged} (__metadata__ is no mapping of texts); {remedy}")
    entries = {name: entry for name, entry in content.items() if isinstance(entry, Entry)}
    if len(entries) < len(content):
        raise CheckpointError(
            f"{damaged} ({next(name for name in content if name not in entries)} has no shape); {remedy}"
        )
    placed = [_placed(name, entry, data_start, shard) for name, entry in entries.items()]
    wrong_size = next((p for p in placed if p.info.nbytes != entries[p.info.name].num_bytes), None)
    if wrong_size is not None:
        info, stored = wrong_size.info, entries[wrong_size.info.name].num_bytes
        raise CheckpointError(
            f"{damaged} ({info.name} of shape {list(info.shape)} and dtype {info.dtype} in {stored} bytes); {remedy}"
        )
    placed.sort(key=lambda p: (p.start, p.stop, p.info.name))
    ends = [data_start, *(p.stop for p in placed)]
    wrong = next((p for end, p in zip(ends, placed, strict=False) if p.start != end), None)
    if wrong is not None:
        raise CheckpointError(f"{damaged} ({wrong.info.name} does not begin where the tensor before it ends); {remedy}")
    return placed


def _placed(name: str, entry: Entry, data_start: int, shard: str) -> TensorLocation:
    nbytes = math.prod(entry.shape) * bits(entry.dtype) // 8
    return TensorLocation(
        TensorInfo(name, tuple(entry.shape), entry.dtype, nbytes, shard), data_start + entry.data_offsets[0]
    )


def bits(code: str) -> int:
    """Bits per entry of a safetensors dtype, e.g. 16 for "BF16", 8 for "F8_E4M3", 8 for "BOOL"."""
    if code == "BOOL":
        return 8
    return int("".join(filter(str.isdigit, code.partition("_")[0])))


TORCH_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


class RangeFile(Protocol):
    """A file that can be read in byte ranges."""

    name: str
    """Name in error messages."""
    size: int | None
    """Size in bytes; known after the first read."""

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop."""


class DiskFile:
    """A file on this disk, read without the system's read-ahead, since large matrices lie between the norm layers."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        """Path of the file."""
        self.size: int | None = path.stat().st_size
        """Size in bytes."""
        self._path = path

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop; ValueError if the file ends earlier."""
        if self.size is not None and stop > self.size:  # before memory is asked for
            raise CheckpointError(f"{self.name}: truncated, ends before byte {stop}; download it again")
        content = bytearray(stop - start)
        with self._path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.seek(start)
            view, done = memoryview(content), 0
            while done < len(content):
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self.name}: truncated, ends before byte {stop}; download it again")
                done += count
        return content


JOINED_GAP = 1 << 18
"""Largest gap in bytes between two tensors that are read in one range: reading it takes no longer than another
request."""
JOINED_BYTES = 1 << 24
"""Largest size of one joined range."""


def joined(placed: Iterable[TensorLocation]) -> list[list[TensorLocation]]:
    """The tensors in file order, grouped: neighbours that are read with one request are in one group."""
    groups: list[list[TensorLocation]] = []
    for tensor in sorted(placed, key=lambda p: p.start):
        last = groups[-1] if groups else []
        if last and tensor.start - last[-1].stop <= JOINED_GAP and tensor.stop - last[0].start <= JOINED_BYTES:
            last.append(tensor)
        else:
            groups.append([tensor])
    return groups


def read_joined(file: RangeFile, group: Sequence[TensorLocation]) -> dict[str, Tensor]:
    """Name -> tensor for a group of neighbours, read in one range."""
    start = group[0].start
    content = file.read(start, group[-1].stop)
    return {p.info.name: _tensor(p, content[p.start - start : p.stop - start], p.info.shape) for p in group}


def _tensor(placed: TensorLocation, content: bytearray, shape: Sequence[int]) -> Tensor:
    """The bytes of a tensor, or of some rows, as a tensor of its dtype; ValueError for a dtype that torch lacks."""
    dtype = TORCH_DTYPES.get(placed.info.dtype)
    if dtype is None:
        raise CheckpointError(f"{placed.info.name}: dtype {placed.info.dtype} cannot be read; leave it out")
    return torch.frombuffer(content, dtype=dtype).reshape(shape) if content else torch.empty(shape, dtype=dtype)


class RangedShard:
    """An open file with a known header; every read is one range request, nothing is kept."""

    def __init__(
        self,
        file: RangeFile,
        placed: Sequence[TensorLocation],
        ahead: Mapping[str, Future[dict[str, Tensor]]] | None = None,
    ) -> None:
        self._file = file
        self._placed = {p.info.name: p for p in placed}
        self._ahead = ahead or {}

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype; taken from the data requested by `ahead` if it is among them."""
        if name in self._ahead:
            return self._ahead[name].result()[name]
        placed = self._placed[name]
        return _tensor(placed, self._file.read(placed.start, placed.stop), placed.info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""
        placed = self._placed[name]
        num_rows, *rest = placed.info.shape
        row = placed.info.nbytes // num_rows if num_rows else 0
        content = self._file.read(placed.start + start * row, placed.start + stop * row)
        return _tensor(placed, content, (stop - start, *rest))


def read_header(file: RangeFile, shard: str) -> list[TensorLocation]:
    """The header of a file, in two reads: its length, then the header itself. ValueError if damaged."""
    length = header_length(file.read(0, LENGTH_BYTES), file.name)
    if file.size is not None and LENGTH_BYTES + length > file.size:
        raise CheckpointError(
            f"{file.name}: truncated or not a safetensors file, a header of {length} bytes in {file.size}"
        )
    placed = parse_header(file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.name, shard)
    end = max((p.stop for p in placed), default=0)
    if file.size is not None and end > file.size:
        raise CheckpointError(f"{file.name}: truncated, {file.size} of {end} bytes; use another copy of it")
    if file.size is not None and 0 < end < file.size:
        raise CheckpointError(f"{file.name}: {file.size - end} bytes more than its header says; use another copy of it")
    return placed


class SafetensorsShard(RangedShard):
    """An open safetensors file; every read creates a new tensor."""

    def __init__(self, path: Path) -> None:
        super().__init__(DiskFile(path), read_header(DiskFile(path), path.name))

    @staticmethod
    def list_tensors(path: Path) -> list[TensorInfo]:
        """The tensors listed in the header, in the order of the data."""
        return [placed.info for placed in read_header(DiskFile(path), path.name)]
