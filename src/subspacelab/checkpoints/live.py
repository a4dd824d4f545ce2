"""One way to open weights from any source: a reference, a path, an open checkpoint, a state dict, a live model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from subspacelab.checkpoints.hub import Listing, RemoteFile, cached_or_refused, fetch_file, hub_errors, list_repository
from subspacelab.checkpoints.index import CONFIG_NAME, INDEX_NAME, located, read_weight_map
from subspacelab.checkpoints.reader import Checkpoint, open_source, read_config
from subspacelab.checkpoints.references import DEMO_ROOT, Repository, Source, locate_reference, resolve_reference
from subspacelab.checkpoints.safetensors_file import DiskFile, RangedShard, RangeFile, joined, read_header, read_joined
from subspacelab.checkpoints.tensors import TensorInfo, dtype_code
from subspacelab.core.errors import CheckpointError

Weights: TypeAlias = str | Path | Source | Checkpoint | Mapping[str, Tensor] | nn.Module
"""The types that `open_checkpoint` accepts."""


class LiveFiles:
    """Tensors in memory behind the interface of weight files; nothing is copied until it is read."""

    num_workers = 1
    """Reading from memory needs no parallel requests."""

    def ahead(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Does nothing: all tensors are in memory."""
        return nullcontext()

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        for key, tensor in tensors.items():
            _require_readable(name, key, tensor)
        self._tensors = tensors
        self.infos = {
            key: TensorInfo(key, tuple(t.shape), dtype_code(t.dtype), t.numel() * t.element_size(), name)
            for key, t in tensors.items()
        }
        """Name -> info, in the order of the mapping."""

    def open(self, shard: str) -> "LiveFiles":
        """The object itself: the tensors form a single shard."""
        return self

    def find_file(self, name: str) -> Path | None:
        """None: tensors in memory have no files beside them."""
        return None

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU in its own dtype, contiguous; not copied if it already is."""
        return self._tensors[name].detach().cpu().contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis, in the same form as `read`."""
        return self._tensors[name].detach()[start:stop].cpu().contiguous()


def open_checkpoint(place: Weights, *, whole: bool = False) -> Checkpoint:
    """Opens any source of named weights, to be read one tensor at a time.

    A string is a reference (`resolve_reference`). From a repository on the hub only the parts that are read are
    downloaded; with `whole`, all of it goes into the hub's cache, for a caller that reads most of it. A path is a
    folder or a weight file. A `Source` is opened; an open checkpoint is returned unchanged. A state dict is read as it
    is. A module's tied weights are read once, as checkpoints store them. For state dicts and modules, `source` has a
    reference ("state_dict" or the class name) and no folder.

    CheckpointError (or ValueError from the reader), in one line, if the argument is none of these or cannot be read.
    """
    if isinstance(place, Checkpoint):
        return place
    if isinstance(place, nn.Module):
        return _in_memory(_untied(place), type(place).__name__, _config_of(place))
    if isinstance(place, Mapping):
        return _in_memory(place, "state_dict", {})
    if isinstance(place, Source):
        return open_source(place)
    if isinstance(place, Path) and not place.exists():
        raise CheckpointError(f"{place}: no such checkpoint folder or file; a name on the hub is given as a string")
    if isinstance(place, str | Path):
        return open_source(resolve_reference(str(place))) if whole else open_reference(str(place))
    raise CheckpointError(
        f"{type(place).__name__}: holds no weights; give a reference, a path, an open checkpoint, state dict or module"
    )


def source_of(place: Weights) -> Source:
    """The whole checkpoint on this disk, for callers that load a model from it; a hub repository is downloaded once.

    CheckpointError for a state dict or a module, which have no folder, and for a checkpoint that cannot be found.
    """
    if isinstance(place, Checkpoint):
        revision = place.source.revision
        return resolve_reference(f"{place.source.reference}@{revision}") if revision else place.source
    if isinstance(place, str | Path):
        return resolve_reference(str(place))
    if isinstance(place, Source):
        return place
    raise CheckpointError(f"{type(place).__name__}: has no folder; give a reference, a path or an open checkpoint")


def _in_memory(tensors: Mapping[str, Tensor], name: str, config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Source(name, Path(f"<{name}>"), None, name), LiveFiles(tensors, name), config)


def _untied(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module; if several names share one storage (tied embeddings), only the first."""
    seen: set[tuple[Any, ...]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):  # modules may keep other state too
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in seen or tensor.data_ptr() == 0:
                kept[name] = tensor
            seen.add(place)
    return kept


def _config_of(module: nn.Module) -> dict[str, Any]:
    """config.json of a transformers model; {} of any other."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    return dict(to_dict()) if to_dict is not None else {}


def _require_readable(source: str, key: Any, tensor: Any) -> None:
    if not isinstance(key, str) or not isinstance(tensor, Tensor):
        raise CheckpointError(f"{source}: entry {key!r} is a {type(tensor).__name__}, not a tensor; give a state dict")
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise CheckpointError(f"{source}: {key} has layout {tensor.layout}; only dense tensors are read")
    if tensor.device.type == "meta":
        raise CheckpointError(f"{source}: {key} has a shape and no data (device meta); load the weights first")


HUB_WORKERS = 8
"""Number of parallel requests to the hub."""


class RangedFiles:
    """The safetensors files of a checkpoint on the hub, headers already read; made by `open_reference`."""

    num_workers = HUB_WORKERS
    """Useful number of parallel range requests."""

    def __init__(
        self,
        files: Mapping[str, RangeFile],
        find_file: Callable[[str], Path | None],
        weight_map: Mapping[str, str] | None,
    ) -> None:
        self.find_file = find_file
        """Function from the name of a small file beside the weights to its local path; None if there is no such
        file."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            headers = pool.map(read_header, files.values(), files)
            self._shards = {shard: (files[shard], header) for shard, header in zip(files, headers, strict=True)}
        listed = (placed.info for _, header in self._shards.values() for placed in header)
        self.infos = located(listed, weight_map, lambda shard: files[shard].name)
        """Name -> info in file order, checked against the index if there is one."""
        self._ahead: dict[str, Future[dict[str, Tensor]]] = {}

    def open(self, shard: str) -> RangedShard:
        """The named shard."""
        return RangedShard(*self._shards[shard], self._ahead)

    @contextmanager
    def ahead(self, names: Sequence[str]) -> Iterator[None]:
        """Requests these tensors in advance, within the block: neighbours in one range, several ranges in parallel.

        All of them are held in memory until the block ends, so it is meant for small tensors.
        """
        wanted = {(name, self.infos[name].shard) for name in names}
        with ThreadPoolExecutor(self.num_workers) as pool:
            for file, header in self._shards.values():
                for group in joined(p for p in header if (p.info.name, p.info.shard) in wanted):
                    answer = pool.submit(read_joined, file, group)
                    self._ahead |= {p.info.name: answer for p in group}
            try:
                yield
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                self._ahead.clear()


def open_reference(reference: str, *, demo_root: Path = DEMO_ROOT) -> Checkpoint:
    """Opens any reference that `resolve_reference` accepts. Headers are read at once, tensors on demand.

    Nothing is mapped and nothing is read ahead. From the hub, headers and tensors are fetched by range requests, unless
    the cache has the shard. Torch files (`.bin`) have no header and are downloaded whole. If the hub cannot be reached,
    a checkpoint that the cache holds whole is read from there. ValueError, in one line, as from `resolve_reference` and
    `open_source`.
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
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    def find_file(name: str) -> Path | None:
        return fetch_file(place.repo, listing.commit, name) if name in listing.files else None

    def place_of(shard: str) -> RangeFile:
        cached = try_to_load_from_cache(place.repo, shard, revision=listing.commit)
        if isinstance(cached, str):  # whole: what is there need not be fetched again
            return DiskFile(Path(cached))
        url = hf_hub_url(place.repo, shard, revision=listing.commit)
        return RemoteFile(url, f"{place.repo}@{listing.commit[:12]}: {shard}")

    index = find_file(INDEX_NAME) if listing.weights == INDEX_NAME else None
    weight_map = read_weight_map(index) if index else None
    shards = sorted(set(weight_map.values())) if weight_map else [listing.weights]
    files = {shard: place_of(shard) for shard in shards}
    ranged = RangedFiles(files, find_file, weight_map)
    config = find_file(CONFIG_NAME)
    folder = config.parent if config else Path(place.repo)
    return Checkpoint(place.source(folder, listing.commit), ranged, read_config(config) if config else {})
