"""Paths within a training: the built adapter, the trained adapter, the checkpoints."""

from pathlib import Path

from subspacelab.models.lora_folder import META, read_meta

TRAINED = "ft"
"""Folder of the trained adapter in a training's output."""
CHECKPOINTS = "checkpoints"
"""Folder of a training's checkpoints in its output; removed when the training is finished."""
SERVED_ADAPTER, SERVED_BASE = "adapter", "base"
"""Folders of a model in the tracker: the adapter, and its base or a pointer to it."""


def require_adapter(folder: Path) -> Path:
    """`folder` itself; ValueError, with the path of the adapter or the way to make one, if it holds none."""
    if (folder / META).is_file():
        return folder
    if (folder / TRAINED / META).is_file():
        raise ValueError(f"{folder}: holds a training; its adapter is {folder / TRAINED}")
    output = folder.parent if folder.name == TRAINED else folder
    if (output / CHECKPOINTS).is_dir():
        raise ValueError(f"{folder}: the training in {output} is not finished; run `nullspace train` again to go on")
    raise ValueError(f"{folder}: no adapter here; make one by `subspacelab nullspace build`, train it by `train`")


def seed_folders(folder: Path) -> dict[int, Path]:
    """Seed, read from the adapter -> folder of an adapter or training in `folder`, in ascending order.

    ValueError if there is none, or if two have one seed.
    """
    found: dict[int, Path] = {}
    for place in folder.iterdir() if folder.is_dir() else ():
        adapter = next((path for path in (place, place / TRAINED) if (path / META).is_file()), None)
        if adapter is not None:
            other = found.setdefault(read_meta(adapter)["seed"], place)
            if other != place:
                first, second = sorted((other, place))
                raise ValueError(f"{first} and {second}: adapters of one seed; move one of them away")
    if not found:
        raise ValueError(f"{folder}: no adapter here; run the stage before")
    return dict(sorted(found.items()))


def first_adapter(folder: Path) -> Path:
    """The adapter of the first seed in `folder`: the trained one in a folder of trainings, else the built one."""
    first = next(iter(seed_folders(folder).values()))
    return first / TRAINED if (first / TRAINED).is_dir() else first
