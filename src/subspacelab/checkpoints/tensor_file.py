"""One safetensors file: written whole or not at all, read whole."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subspacelab.checkpoints.payload import require_payload
from subspacelab.files import write_beside


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: tuple[str, str] = ("format", "pt")) -> None:
    """Writes named tensors, from whatever device and layout, with one (key, value) of metadata.

    One, because several are written in an order that changes from process to process: equal tensors are equal
    bytes. OSError, naming the file, when the disk is full.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_beside(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what this person's umask gives; save_file makes it private
        try:
            save_file(dense, partial, metadata=dict([metadata]))
            partial.chmod(mode)
        except SafetensorError as e:
            raise _as_os_error(e, partial) from e


def _as_os_error(e: SafetensorError, path: Path) -> OSError:
    """What the system said, which safetensors tells in words only."""
    number = re.search(r"os error (\d+)", str(e))
    if number is None:
        return OSError(f"{path}: cannot be written ({str(e).splitlines()[0]}); make room and run again")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata; a ValueError names one that is gone or broken."""
    try:
        require_payload(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path}: missing or broken ({str(e).splitlines()[0]}); restore it") from e
