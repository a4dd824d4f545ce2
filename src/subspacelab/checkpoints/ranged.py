"""A safetensors file read by byte ranges, on a disk or a server: the header, then exactly what is asked for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from subspacelab.checkpoints.safetensors_header import LENGTH_BYTES, Placed, header_length, parse_header
from subspacelab.checkpoints.tensors import DTYPE_CODES

TORCH_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


class RangeFile(Protocol):
    """A file that gives ranges of its bytes."""

    name: str
    """What errors call it."""
    size: int | None
    """Its bytes, once known."""

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop."""


class DiskFile:
    """A file on this disk, read without the system's reading ahead: between two norm layers lie the matrices."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        """Its path."""
        self.size: int | None = path.stat().st_size
        """Its bytes."""
        self._path = path

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes start:stop; ValueError if the file ends before."""
        if self.size is not None and stop > self.size:  # before memory is asked for
            raise ValueError(f"{self.name}: truncated, ends before byte {stop}; download it again")
        content = bytearray(stop - start)
        with self._path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.seek(start)
            view, done = memoryview(content), 0
            while done < len(content):
                count = file.readinto(view[done:])
                if not count:
                    raise ValueError(f"{self.name}: truncated, ends before byte {stop}; download it again")
                done += count
        return content


class RangedShard:
    """An open file whose header is known; every read is a range, nothing is kept."""

    def __init__(self, file: RangeFile, placed: Sequence[Placed]) -> None:
        self._file = file
        self._placed = {p.info.name: p for p in placed}

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""
        placed = self._placed[name]
        return self._read(placed, placed.start, placed.stop, placed.info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""
        placed = self._placed[name]
        num_rows, *rest = placed.info.shape
        row = placed.info.nbytes // num_rows if num_rows else 0
        return self._read(placed, placed.start + start * row, placed.start + stop * row, (stop - start, *rest))

    def _read(self, placed: Placed, start: int, stop: int, shape: Sequence[int]) -> Tensor:
        dtype = TORCH_DTYPES.get(placed.info.dtype)
        if dtype is None:
            raise ValueError(f"{placed.info.name}: dtype {placed.info.dtype} cannot be read; leave it out")
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._file.read(start, stop), dtype=dtype).reshape(shape)


def read_header(file: RangeFile, shard: str) -> list[Placed]:
    """What a file holds and where, in two ranges: how long the header is, and the header. ValueError if damaged."""
    length = header_length(file.read(0, LENGTH_BYTES), file.name)
    if file.size is not None and LENGTH_BYTES + length > file.size:
        raise ValueError(f"{file.name}: truncated or not a safetensors file, a header of {length} bytes in {file.size}")
    placed = parse_header(file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.name, shard)
    end = max((p.stop for p in placed), default=0)
    if file.size is not None and end > file.size:
        raise ValueError(f"{file.name}: truncated, {file.size} of {end} bytes; use another copy of it")
    if file.size is not None and 0 < end < file.size:
        raise ValueError(f"{file.name}: {file.size - end} bytes more than its header says; use another copy of it")
    return placed
