"""Opens a checkpoint of which little will be read: nothing is downloaded but the byte ranges that are asked for."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from subspacelab.checkpoints.hub import Listing, cached_or_refused, fetch_file, hub_errors, list_repository
from subspacelab.checkpoints.index import CONFIG_NAME, INDEX_NAME, located, read_weight_map
from subspacelab.checkpoints.reader import Checkpoint, open_source, read_config
from subspacelab.checkpoints.references import DEMO_ROOT, Repository, Source, locate_reference, resolve_reference
from subspacelab.checkpoints.remote_file import RemoteFile
from subspacelab.checkpoints.safetensors_file import RangedShard, RangeFile, read_header

HUB_WORKERS = 8
"""Answers of the hub that are waited for side by side."""


class RangedFiles:
    """The safetensors files of a checkpoint on the hub, their headers read; made by `open_reference`."""

    num_workers = HUB_WORKERS
    """How many tensors are worth asking for at once."""

    def __init__(
        self,
        files: Mapping[str, RangeFile],
        find_file: Callable[[str], Path | None],
        weight_map: Mapping[str, str] | None,
    ) -> None:
        self.find_file = find_file
        """The path of a small file beside the weights, None if there is none."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            headers = pool.map(read_header, files.values(), files)
            self._shards = {shard: (files[shard], header) for shard, header in zip(files, headers, strict=True)}
        listed = (placed.info for _, header in self._shards.values() for placed in header)
        self.infos = located(listed, weight_map, lambda shard: files[shard].name)
        """Name -> info in file order, checked against the index if there is one."""

    def open(self, shard: str) -> RangedShard:
        """The named shard."""
        return RangedShard(*self._shards[shard])


def open_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Checkpoint:
    """Opens whatever `resolve_reference` understands; headers are read at once, tensors when they are asked for.

    Nothing is mapped and nothing is read ahead: what is read of the weights is their headers and those tensors, from
    the hub by range requests. Torch files (`.bin`) have no header: from the hub they are downloaded whole. What the
    hub's cache holds whole is read from there if the hub is out of reach. ValueError, in one line, as from
    `resolve_reference` and `open_source`.
    """
    place = locate_reference(reference, demo_root=demo_root)
    if isinstance(place, Source):
        return open_source(place)
    try:
        listing = list_repository(place.repo, place.revision)
        if listing.weights.startswith("model.safetensors"):
            return _open_on_hub(place, listing)
        return open_source(resolve_reference(reference, demo_root=demo_root))
    except hub_errors() as e:
        return open_source(place.source(*cached_or_refused(place.repo, place.revision, e)))


def _open_on_hub(place: Repository, listing: Listing) -> Checkpoint:
    from huggingface_hub import hf_hub_url

    def find_file(name: str) -> Path | None:
        return fetch_file(place.repo, listing.commit, name) if name in listing.files else None

    def remote(shard: str) -> RemoteFile:
        url = hf_hub_url(place.repo, shard, revision=listing.commit)
        return RemoteFile(url, f"{place.repo}@{listing.commit[:12]}: {shard}")

    index = find_file(INDEX_NAME) if listing.weights == INDEX_NAME else None
    weight_map = read_weight_map(index) if index else None
    shards = sorted(set(weight_map.values())) if weight_map else [listing.weights]
    files = {shard: remote(shard) for shard in shards}
    ranged = RangedFiles(files, find_file, weight_map)
    config = find_file(CONFIG_NAME)
    folder = config.parent if config else Path(place.repo)
    return Checkpoint(place.source(folder, listing.commit), ranged, read_config(config) if config else {})
