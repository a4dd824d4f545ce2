"""Which files hold a checkpoint's weights: decided by name, never by globbing."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from subspacelab.files import read_json

CONFIG_NAME = "config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
BIN_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"
PREFERENCE = (SINGLE_NAME, INDEX_NAME, BIN_NAME, BIN_INDEX_NAME)
"""In this order: repositories that hold one checkpoint twice are read once, the safe format first."""

LFS_HEAD = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one checkpoint."""

    folder: Path
    """The folder they lie in."""
    shards: tuple[str, ...]
    """Their names, sorted."""
    weight_map: dict[str, str] | None
    """Tensor name -> shard, from the index of a sharded checkpoint; None for a single file."""


def find_weights(path: Path) -> WeightFiles:
    """The weight files of a folder, or of a path to one file; ValueError if any is missing or a pointer."""
    if path.is_file():
        return _checked(WeightFiles(path.parent, (path.name,), None))
    found = next((name for name in PREFERENCE if (path / name).exists()), None)
    if found is None:
        raise ValueError(f"{path}: no weights here; expected one of {', '.join(PREFERENCE)}")
    if not found.endswith(".json"):
        return _checked(WeightFiles(path, (found,), None))
    weight_map = read_weight_map(path / found)
    return _checked(WeightFiles(path, tuple(sorted(set(weight_map.values()))), weight_map))


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard of a hub index file; ValueError if it is not one."""
    require_payload(index)
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: no 'weight_map' in it; download the index file again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard:
            raise ValueError(f"{index}: the shard of {name} is {shard!r}, not a file name in the same folder")
    return weight_map


def require_payload(path: Path) -> None:
    """ValueError if the file is empty or a git-LFS pointer instead of the file it stands for."""
    with path.open("rb") as f:
        head = f.read(len(LFS_HEAD))
    if not head:
        raise ValueError(f"{path}: empty file; download it again")
    if head == LFS_HEAD:
        raise ValueError(f"{path}: a git-LFS pointer, not the file itself; run `git lfs pull` in its repository")


def _checked(files: WeightFiles) -> WeightFiles:
    """The same, after looking at every shard's head: a missing one is found now, not an hour later."""
    missing = [shard for shard in files.shards if not (files.folder / shard).exists()]
    if missing:
        raise ValueError(
            f"{files.folder / missing[0]}: missing shard ({len(missing)} of {len(files.shards)} missing); "
            "download the checkpoint again"
        )
    for shard in files.shards:
        require_payload(files.folder / shard)
    return files
