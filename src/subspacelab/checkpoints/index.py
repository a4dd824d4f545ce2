"""Which files hold a checkpoint's weights: found by their known names, never by globbing."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, Field, TypeAdapter

from subspacelab.checkpoints.tensors import TensorInfo
from subspacelab.checkpoints.validation import read_checked, require_payload
from subspacelab.core.errors import CheckpointError

CONFIG_NAME, ADAPTER_CONFIG = "config.json", "adapter_config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
PREFERENCE = (SINGLE_NAME, INDEX_NAME, BIN_NAME, BIN_INDEX_NAME)
"""Order of preference: a repository that stores one checkpoint in two formats is read once, from the safe format."""


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one checkpoint."""

    folder: Path
    """Folder of the files."""
    shards: tuple[str, ...]
    """File names, sorted."""
    weight_map: dict[str, str] | None
    """Tensor name -> shard, from the index of a sharded checkpoint; None for a single file."""


def find_weights(path: Path) -> WeightFiles:
    """The weight files of a folder, or of a path to one file; ValueError if any is missing or a pointer."""
    if path.is_file():
        return _checked(WeightFiles(path.parent, (path.name,), None))
    found = next((name for name in PREFERENCE if (path / name).exists()), None)
    if found is None:
        if (path / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{path}: an adapter, not a checkpoint; `rotation audit` and `compare` take adapters")
        inner = inner_folder(path, (*PREFERENCE, ADAPTER_CONFIG))
        if inner:
            raise CheckpointError(f"{path}: no weights here; {inner}")
        raise CheckpointError(f"{path}: no weights here; expected one of {', '.join(PREFERENCE)}")
    if not found.endswith(".json"):
        return _checked(WeightFiles(path, (found,), None))
    weight_map = read_weight_map(path / found)
    return _checked(WeightFiles(path, tuple(sorted(set(weight_map.values()))), weight_map))


def inner_folder(path: Path, names: Collection[str]) -> str:
    """For an error: the first folder inside `path` that holds a file of these names; empty if none does."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    found = next((folder for folder in inside if any((folder / name).is_file() for name in names)), None)
    return f"did you mean {found}?" if found else ""


class _Index(BaseModel):
    """The keys of an index file that this code reads."""

    weight_map: dict[str, str] = Field(min_length=1)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard of a hub index file; ValueError if it is not one."""
    weight_map = read_checked(index, TypeAdapter(_Index), "an index of shards").weight_map
    for name, shard in weight_map.items():
        if PurePosixPath(shard).name != shard or shard in ("", ".."):
            raise CheckpointError(f"{index}: the shard of {name} is {shard!r}, not a file name in the same folder")
    return weight_map


def located(
    infos: Iterable[TensorInfo], weight_map: Mapping[str, str] | None, path_of: Callable[[str], object]
) -> dict[str, TensorInfo]:
    """Name -> info, in the order given; for a tensor in two shards, the entry of the shard that the index names.

    ValueError, naming the file by `path_of(shard)`, if the index names a shard that lacks the tensor, or does not name
    a tensor that is in two shards.
    """
    found: dict[str, TensorInfo] = {}
    for info in infos:
        named = (weight_map or {}).get(info.name)
        if named is None and info.name in found:
            both = f"{info.name} is in it and in {found[info.name].shard}"
            raise CheckpointError(f"{path_of(info.shard)}: {both}, and not in the index; download them again")
        if named in (None, info.shard):
            found[info.name] = info
    for name, shard in (weight_map or {}).items():
        if name not in found:
            raise CheckpointError(
                f"{path_of(shard)}: {name} is not in it, though the index says so; download both again"
            )
    return found


def repeated_names(shards: Iterable[Iterable[TensorInfo]]) -> list[str]:
    """The tensors that more than one shard holds."""
    counts = Counter(info.name for shard in shards for info in shard)
    return [name for name, count in counts.items() if count > 1]


def _checked(files: WeightFiles) -> WeightFiles:
    """The weight files, after the header of every shard was read, so that a missing shard is reported at once."""
    missing = [shard for shard in files.shards if not (files.folder / shard).exists()]
    if missing:
        raise CheckpointError(
            f"{files.folder / missing[0]}: missing shard ({len(missing)} of {len(files.shards)} missing); "
            "download the checkpoint again"
        )
    for shard in files.shards:
        require_payload(files.folder / shard)
    return files
