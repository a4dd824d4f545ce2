"""A torch file (`.bin`, `.pt`): tensors only, whatever the pickle in it would like to be."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.checkpoints.tensors import TensorInfo, dtype_code

ZIP_HEAD, PICKLE_HEAD = b"PK\x03\x04", b"\x80\x02"


class BinShard:
    """An open torch file: mapped if it is of the zip format, in memory if it is older."""

    def __init__(self, path: Path) -> None:
        self._tensors = load_tensors(path, "cpu")

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype; mapped and without a copy where it is contiguous."""
        return self._tensors[name].detach().contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""
        return self._tensors[name].detach()[start:stop].contiguous()

    @staticmethod
    def list_tensors(path: Path) -> list[TensorInfo]:
        """Shapes and dtypes, in the file's order; no data is kept."""
        return [
            TensorInfo(name, tuple(t.shape), dtype_code(t.dtype), t.numel() * t.element_size(), path.name)
            for name, t in load_tensors(path, "meta").items()
        ]


def load_tensors(path: Path, device: str) -> dict[str, Tensor]:
    """The flat name -> tensor dictionary of a torch file, on "cpu" or "meta"; ValueError for anything else."""
    with path.open("rb") as f:
        head = f.read(4)
    if not head.startswith((ZIP_HEAD, PICKLE_HEAD)):
        raise ValueError(f"{path}: not a torch file; download it again")
    content = _load(path, device, mmap=head == ZIP_HEAD)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    for name, value in content.items():
        _require_dense(path, name, value)
    return content


def _load(path: Path, device: str, mmap: bool) -> Any:
    """torch.load, tensors only; files older than the zip format cannot be mapped."""
    try:
        return torch.load(path, weights_only=True, mmap=mmap, map_location=device)
    except pickle.UnpicklingError as e:
        found = re.search(r"GLOBAL (\S+)", str(e))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{path}: a pickle that holds more than tensors{what}, which could run code; "
            "use the safetensors files of this checkpoint"
        ) from e
    # What a damaged pickle stream raises depends on where it is cut.
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: truncated or damaged torch file; download it again") from e


def _require_dense(path: Path, name: Any, value: Any) -> None:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; save the state_dict alone")
    if value.layout is not torch.strided:
        raise ValueError(f"{path}: {name} has layout {value.layout}; only dense tensors are read")
