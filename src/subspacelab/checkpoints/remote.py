"""Checkpoints of the hub read where they are: headers first, then the byte ranges of the tensors that are asked for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from subspacelab.checkpoints.hub import Listing, cached_or_refused, fetch_file, hub_errors, list_repository
from subspacelab.checkpoints.index import CONFIG_NAME, INDEX_NAME, read_weight_map
from subspacelab.checkpoints.ranges import RemoteFile
from subspacelab.checkpoints.reader import Checkpoint, open_checkpoint, read_config
from subspacelab.checkpoints.references import DEMO_ROOT, Repository, Source, locate_reference, resolve_reference
from subspacelab.checkpoints.safetensors_header import LENGTH_BYTES, Placed, header_length, parse_header
from subspacelab.checkpoints.tensors import DTYPE_CODES, TensorInfo

TORCH_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


class RemoteShard:
    """A safetensors file on a server; every read is a request, nothing is kept."""

    def __init__(self, file: RemoteFile, placed: Sequence[Placed]) -> None:
        self._file = file
        self._placed = {p.info.name: p for p in placed}

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype."""
        placed = self._placed[name]
        return self._read(placed, placed.start, placed.stop, placed.info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis."""
        placed = self._placed[name]
        num_rows, *rest = placed.info.shape
        row = placed.info.nbytes // num_rows if num_rows else 0
        return self._read(placed, placed.start + start * row, placed.start + stop * row, (stop - start, *rest))

    def _read(self, placed: Placed, start: int, stop: int, shape: Sequence[int]) -> Tensor:
        dtype = TORCH_DTYPES.get(placed.info.dtype)
        if dtype is None:
            raise ValueError(f"{placed.info.name}: dtype {placed.info.dtype} cannot be read; leave it out")
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._file.read(start, stop), dtype=dtype).reshape(shape)


class HubFiles:
    """The safetensors files of one commit of a repository; made by `open_reference`."""

    num_workers = 8
    """Answers are waited for side by side."""

    def __init__(self, repo: str, listing: Listing) -> None:
        self._repo, self._listing = repo, listing
        weight_map = None
        if listing.weights == INDEX_NAME:
            weight_map = read_weight_map(fetch_file(repo, listing.commit, INDEX_NAME))
        shards = [listing.weights] if weight_map is None else sorted(set(weight_map.values()))
        with ThreadPoolExecutor(self.num_workers) as pool:
            self._shards = dict(zip(shards, pool.map(self._read_header, shards), strict=True))
        self.infos: dict[str, TensorInfo] = {p.info.name: p.info for _, ps in self._shards.values() for p in ps}
        """Name -> info in file order."""
        for name, shard in (weight_map or {}).items():
            if name not in self.infos or self.infos[name].shard != shard:
                raise ValueError(f"{repo}@{listing.commit}: {name} is not in {shard}, though the index says so")

    def open(self, shard: str) -> RemoteShard:
        """The named shard; its header is known."""
        return RemoteShard(*self._shards[shard])

    def find_file(self, name: str) -> Path | None:
        """A small file beside the weights, fetched into the hub's cache; None if the repository has none."""
        return fetch_file(self._repo, self._listing.commit, name) if name in self._listing.files else None

    def _read_header(self, shard: str) -> tuple[RemoteFile, list[Placed]]:
        """Two requests: how long the header is, and the header."""
        from huggingface_hub import hf_hub_url

        commit = self._listing.commit
        file = RemoteFile(hf_hub_url(self._repo, shard, revision=commit), f"{self._repo}@{commit[:12]}: {shard}")
        length = header_length(file.read(0, LENGTH_BYTES), file.name)
        placed = parse_header(file.read(LENGTH_BYTES, LENGTH_BYTES + length), file.name, shard)
        end = max((p.stop for p in placed), default=0)
        if file.size is not None and end > file.size:
            raise ValueError(f"{file.name}: truncated, {file.size} of {end} bytes; use another copy of it")
        return file, placed


def open_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Checkpoint:
    """Opens whatever `resolve_reference` understands; of a hub repository only metadata and headers are fetched.

    Tensors are then read by range requests, when they are asked for. What the hub's cache holds whole is read from
    there if the hub is out of reach; torch files (`.bin`) have no header and are downloaded whole.
    ValueError, in one line, as from `resolve_reference` and `open_checkpoint`.
    """
    place = locate_reference(reference, demo_root=demo_root)
    if isinstance(place, Source):
        return open_checkpoint(place)
    try:
        listing = list_repository(place.repo, place.revision)
        if not listing.weights.startswith("model.safetensors"):
            return open_checkpoint(resolve_reference(reference, demo_root=demo_root))
        return _open_on_hub(place, listing)
    except hub_errors() as e:
        return open_checkpoint(place.source(*cached_or_refused(place.repo, place.revision, e)))


def _open_on_hub(place: Repository, listing: Listing) -> Checkpoint:
    files = HubFiles(place.repo, listing)
    config = files.find_file(CONFIG_NAME)
    folder = config.parent if config else Path(place.repo)
    return Checkpoint(place.source(folder, listing.commit), files, read_config(config) if config else {})
