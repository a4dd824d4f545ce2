"""One open weight file at a time, safetensors or torch, behind one small interface."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from subspacelab.checkpoints.bin_shard import BinShard
from subspacelab.checkpoints.index import WeightFiles, located
from subspacelab.checkpoints.safetensors_file import SafetensorsShard
from subspacelab.checkpoints.tensors import TensorInfo
from subspacelab.core.errors import CheckpointError

SUFFIXES: dict[str, type[SafetensorsShard] | type[BinShard]] = {
    ".safetensors": SafetensorsShard,
    ".bin": BinShard,
    ".pt": BinShard,
    ".pth": BinShard,
}


class Shard(Protocol):
    """An open weight file; closed by dropping it (tensors read from it stay valid)."""

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""


def open_shard(path: Path) -> Shard:
    """Opens a weight file without reading its data; ValueError names a file that is broken."""
    return _format_of(path)(path)


def list_tensors(path: Path) -> list[TensorInfo]:
    """What a weight file holds, in the file's own order, without reading data."""
    return _format_of(path).list_tensors(path)


def _format_of(path: Path) -> type[SafetensorsShard] | type[BinShard]:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: unknown weight format {path.suffix!r}; known: {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


class LocalFiles:
    """Headers are read at once, shards are opened when asked for."""

    num_workers = 1
    """Reading from a disk is not waiting for answers."""

    def __init__(self, files: WeightFiles) -> None:
        listed = (info for shard in files.shards for info in list_tensors(files.folder / shard))
        self.infos = located(listed, files.weight_map, lambda shard: files.folder / shard)
        """Name -> info in file order."""
        self._folder = files.folder

    def open(self, shard: str) -> Shard:
        """The named shard."""
        return open_shard(self._folder / shard)

    def find_file(self, name: str) -> Path | None:
        """A file beside the weights, None if there is no such file."""
        path = self._folder / name
        return path if path.is_file() else None
