"""One open weight file at a time, safetensors or torch (`.bin`, `.pt`: tensors only), behind one small interface."""

import pickle
import re
import struct
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from subspacelab.checkpoints.index import WeightFiles, located
from subspacelab.checkpoints.safetensors_file import SafetensorsShard
from subspacelab.checkpoints.tensors import TensorInfo, dtype_code
from subspacelab.core.errors import CheckpointError

ZIP_HEAD, PICKLE_HEAD = b"PK\x03\x04", b"\x80\x02"
DAMAGED = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError),
    struct.error,
)
"""Exceptions that a damaged pickle stream may raise; which one depends on the position of the damage."""


class BinShard:
    """An open torch file: mapped if it has the zip format, read into memory if it is older."""

    def __init__(self, path: Path) -> None:
        self._tensors = load_tensors(path, "cpu")

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype; mapped, and not copied if it is contiguous."""
        return self._tensors[name].detach().contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""
        return self._tensors[name].detach()[start:stop].contiguous()

    @staticmethod
    def list_tensors(path: Path) -> list[TensorInfo]:
        """Shapes and dtypes, in file order, without keeping data."""
        return [
            TensorInfo(name, tuple(t.shape), dtype_code(t.dtype), t.numel() * t.element_size(), path.name)
            for name, t in load_tensors(path, "cpu" if _is_zip(path) else "meta").items()
        ]


def load_tensors(path: Path, device: str) -> dict[str, Tensor]:
    """The flat name -> tensor dictionary of a torch file, on "cpu" or "meta"; ValueError for anything else."""
    content = _load(path, device, mmap=_is_zip(path))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    for name, value in content.items():
        _require_dense(path, name, value)
        _require_stored(path, name, value, device)
    return content


def _is_zip(path: Path) -> bool:
    """Whether the file has the zip format, not the older one; ValueError if neither, and for a damaged archive."""
    with path.open("rb") as f:
        head = f.read(4)
    if not head.startswith((ZIP_HEAD, PICKLE_HEAD)):
        raise CheckpointError(f"{path}: not a torch file; download it again")
    if head != ZIP_HEAD:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as e:
        raise CheckpointError(f"{path}: truncated or damaged torch file ({e}); download it again") from e
    if packed:  # mapped, its bytes would be taken for numbers
        raise CheckpointError(
            f"{path}: {packed[0]} is compressed; save it by torch.save, which stores tensors as they are"
        )
    return True


def _load(path: Path, device: str, mmap: bool) -> Any:
    """torch.load of tensors only; files older than the zip format cannot be mapped."""
    try:
        return torch.load(path, weights_only=True, mmap=mmap, map_location=device)
    except pickle.UnpicklingError as e:
        found = re.search(r"GLOBAL (\S+)", str(e))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: a pickle that holds more than tensors{what}, which could run code; "
            "use the safetensors files of this checkpoint"
        ) from e
    except DAMAGED as e:
        raise CheckpointError(f"{path}: truncated or damaged torch file; download it again") from e


def _require_dense(path: Path, name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(
            f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; save the state_dict alone"
        )
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise CheckpointError(f"{path}: {name} has layout {layout}; only dense tensors are read")


def _require_stored(path: Path, name: str, value: Tensor, device: str) -> None:
    """ValueError for a tensor without data, and for one that repeats little data many times: neither is a weight."""
    if value.device.type != device:
        raise CheckpointError(f"{path}: {name} has a shape and no data (device {value.device}); save the loaded model")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} is larger than its data, an expanded view; save it contiguous")


SUFFIXES: dict[str, type[SafetensorsShard] | type[BinShard]] = {
    ".safetensors": SafetensorsShard,
    ".bin": BinShard,
    ".pt": BinShard,
    ".pth": BinShard,
}


class Shard(Protocol):
    """An open weight file. It is closed when the object is deleted; tensors read from it stay valid."""

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""


def open_shard(path: Path) -> Shard:
    """Opens a weight file without reading its data; ValueError, naming the file, if it is broken."""
    return _format_of(path)(path)


def list_tensors(path: Path) -> list[TensorInfo]:
    """The tensors of a weight file, in file order, without reading data."""
    return _format_of(path).list_tensors(path)


def _format_of(path: Path) -> type[SafetensorsShard] | type[BinShard]:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: unknown weight format {path.suffix!r}; known: {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


class LocalFiles:
    """Weight files on this disk: headers are read at once, shards are opened on demand."""

    num_workers = 1
    """Reads from a disk need no parallel requests."""

    def ahead(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Does nothing: a local file needs no advance request."""
        return nullcontext()

    def __init__(self, files: WeightFiles) -> None:
        listed = (info for shard in files.shards for info in list_tensors(files.folder / shard))
        self.infos = located(listed, files.weight_map, lambda shard: files.folder / shard)
        """Name -> info in file order."""
        self._folder = files.folder

    def open(self, shard: str) -> Shard:
        """The named shard."""
        return open_shard(self._folder / shard)

    def find_file(self, name: str) -> Path | None:
        """A file beside the weights; None if there is no such file."""
        path = self._folder / name
        return path if path.is_file() else None
