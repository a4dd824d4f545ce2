"""The weight files of a checkpoint on this disk."""

from pathlib import Path

from subspacelab.checkpoints.index import WeightFiles, located
from subspacelab.checkpoints.shards import Shard, list_tensors, open_shard


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
