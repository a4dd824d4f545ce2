"""Hidden states of many windows between two blocks of a model: on the device, in memory, or on disk."""

import shutil
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.core.devices import free_device_memory
from subspacelab.core.files import remove_folder

Offload = Literal["auto", "device", "cpu", "disk"]
DEVICE_SHARE, MEMORY_SHARE = 4, 2
"""`auto` uses the device if the states fit into a quarter of its free memory, else RAM if they fit into half of it."""


class HiddenStates:
    """The states of each batch before the current block, and those after it that are already computed."""

    def __init__(self, place: torch.device) -> None:
        self.depth = -1
        """Number of blocks that all states have passed; -1 before the embedding."""
        self._place = place
        self._states: dict[int, Tensor] = {}

    def before(self, batch: int) -> Tensor:
        """The states of a batch before the current block."""
        return self._states[batch]

    def put(self, batch: int, states: Tensor) -> None:
        """Stores the states of a batch after the current block."""
        self._states[batch] = states.to(self._place)

    def advance(self) -> None:
        """Moves on to the next block; all batches must have passed the current one."""
        self.depth += 1


class StatesOnDisk(HiddenStates):
    """Hidden states in a folder, one file per batch: read and written one at a time, and found again after a kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__(torch.device("cpu"))
        self._folder = folder

    def before(self, batch: int) -> Tensor:
        """The states of a batch before the current block."""
        return read_tensors(self._file(self.depth, batch))[0]["states"]

    def put(self, batch: int, states: Tensor) -> None:
        """Stores the states of a batch after the current block, beside those before it."""
        file = self._file(self.depth + 1, batch)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {"states": states})

    def advance(self) -> None:
        """Moves on to the next block and removes the states before the current one, whose results must be stored."""
        super().advance()
        self._drop(self.depth - 1)

    def resume(self, depth: int) -> bool:
        """Continues with the states after `depth` blocks, if all of them exist."""
        if depth < 1 or not self._file(depth, 0).parent.is_dir():
            return False
        self.depth = depth
        self._drop(depth - 1)
        return True

    def _file(self, depth: int, batch: int) -> Path:
        return self._folder / f"states-{depth}" / f"{batch}.safetensors"

    def _drop(self, depth: int) -> None:
        folder = self._file(depth, 0).parent
        if folder.is_dir():
            remove_folder(folder)


def open_states(offload: Offload, num_bytes: int, device: torch.device, folder: Path) -> HiddenStates:
    """A place for states of `num_bytes`: the requested one, or the first that is large enough; on disk, `folder`."""
    if offload == "auto":
        offload = _first_with_room(num_bytes, device, folder)
    if offload == "disk":
        return StatesOnDisk(folder)
    return HiddenStates(device if offload == "device" else torch.device("cpu"))


def _first_with_room(num_bytes: int, device: torch.device, folder: Path) -> Offload:
    if DEVICE_SHARE * num_bytes < free_device_memory(device):
        return "device"
    if MEMORY_SHARE * num_bytes < psutil.virtual_memory().available:
        return "cpu"
    near = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if 2 * num_bytes > (free := shutil.disk_usage(near).free):
        raise ValueError(
            f"the hidden states of the calibration take {num_bytes:.3g} bytes, more than half of memory, and twice that"
            f" on disk, where {free:.3g} are free at {near}: lower `calib_loader_size` or `seq_len`"
        )
    return "disk"
