"""A safetensors file on this disk, read by byte ranges: nothing is mapped, so it may be larger than the memory."""

from pathlib import Path

from subspacelab.checkpoints.ranged import DiskFile, RangedShard, read_header
from subspacelab.checkpoints.tensors import TensorInfo


class SafetensorsShard(RangedShard):
    """An open safetensors file; every read is a tensor of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(DiskFile(path), read_header(DiskFile(path), path.name))

    @staticmethod
    def list_tensors(path: Path) -> list[TensorInfo]:
        """What the header says, in the order of the data."""
        return [placed.info for placed in read_header(DiskFile(path), path.name)]
