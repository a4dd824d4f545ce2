"""A safetensors file: header first, tensors mapped from disk."""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from subspacelab.checkpoints.tensors import TensorInfo


class SafetensorsShard:
    """An open safetensors file; its tensors are views of the mapped file and take no memory of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype, mapped."""
        return self._translated(name, lambda: self._file.get_tensor(name))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis, mapped."""
        return self._translated(name, lambda: self._file.get_slice(name)[start:stop])

    @staticmethod
    def list_tensors(path: Path) -> list[TensorInfo]:
        """What the header says, in the order of the data."""
        file = _open(path)
        return [_info(path, name, file.get_slice(name)) for name in file.offset_keys()]

    def _translated(self, name: str, read: Any) -> Tensor:
        try:
            tensor: Tensor = read()
        except SafetensorError as e:
            raise ValueError(f"{self._path}: cannot read {name} ({_first_line(e)})") from e
        return tensor


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as e:
        raise ValueError(f"{path}: truncated or not a safetensors file ({_first_line(e)}); download it again") from e


def _info(path: Path, name: str, piece: Any) -> TensorInfo:
    shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
    return TensorInfo(name, shape, dtype, math.prod(shape) * bits(dtype) // 8, path.name)


def bits(code: str) -> int:
    """Bits per entry of a safetensors dtype, e.g. 16 for "BF16", 8 for "F8_E4M3", 8 for "BOOL"."""
    if code == "BOOL":
        return 8
    return int("".join(filter(str.isdigit, code.partition("_")[0])))


def _first_line(e: BaseException) -> str:
    return str(e).partition("\n")[0]
