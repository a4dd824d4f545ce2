"""The weight files of a checkpoint on this disk."""

from pathlib import Path

from subspacelab.checkpoints.index import WeightFiles
from subspacelab.checkpoints.shards import Shard, list_tensors, open_shard
from subspacelab.checkpoints.tensors import TensorInfo


class LocalFiles:
    """Headers are read at once, shards are opened when asked for."""

    num_workers = 1
    """Reading from a disk is not waiting for answers."""

    def __init__(self, files: WeightFiles) -> None:
        self.infos = _list_all(files)
        """Name -> info in file order."""
        self._folder = files.folder

    def open(self, shard: str) -> Shard:
        """The named shard."""
        return open_shard(self._folder / shard)

    def find_file(self, name: str) -> Path | None:
        """A file beside the weights, None if there is no such file."""
        path = self._folder / name
        return path if path.is_file() else None


def _list_all(files: WeightFiles) -> dict[str, TensorInfo]:
    """Name -> info in file order, checked against the index if there is one."""
    infos = {info.name: info for shard in files.shards for info in list_tensors(files.folder / shard)}
    for name, shard in (files.weight_map or {}).items():
        if name not in infos or infos[name].shard != shard:
            raise ValueError(
                f"{files.folder / shard}: {name} is not in it, though the index says so; download both again"
            )
    return infos
