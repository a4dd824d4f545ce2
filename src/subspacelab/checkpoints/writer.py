"""Weights written whole or not at all, as a safetensors file or a Hugging Face folder; equal inputs, equal bytes."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subspacelab.checkpoints.index import CONFIG_NAME, INDEX_NAME, SINGLE_NAME
from subspacelab.checkpoints.validation import require_payload
from subspacelab.core.errors import CheckpointError
from subspacelab.core.files import replace_folder, write_beside, write_json
from subspacelab.core.ownership import require_own_entries


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: tuple[str, str] = ("format", "pt")) -> None:
    """Writes named tensors, from any device and in any layout, with one (key, value) of metadata.

    Only one, because safetensors writes several in an order that varies between processes, and equal tensors must give
    equal bytes. OSError, naming the file, if the disk is full.
    """
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_beside(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what this person's umask gives; save_file makes it private
        try:
            save_file(dense, partial, metadata=dict([metadata]))
            partial.chmod(mode)
        except SafetensorError as e:
            raise _as_os_error(e, partial) from e


def _as_os_error(e: SafetensorError, path: Path) -> OSError:
    """The system error that safetensors reports only as text."""
    number = re.search(r"os error (\d+)", str(e))
    if number is None:
        return OSError(f"{path}: cannot be written ({str(e).splitlines()[0]}); free some space and run again")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata; ValueError, naming the file, if it is missing or broken."""
    try:
        require_payload(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: missing or broken ({str(e).splitlines()[0]}); restore it") from e


MAX_SHARD_BYTES = 2 * 10**9


class CheckpointWriter:
    """Takes tensors one at a time and keeps at most one shard of them in memory; made by `checkpoint_writer`."""

    def __init__(self, folder: Path, max_shard_bytes: int) -> None:
        if max_shard_bytes < 1:
            raise CheckpointError(f"max_shard_bytes is {max_shard_bytes}; give at least 1")
        self.folder = folder
        """The folder being written; the caller may put further files of the checkpoint (tokenizer) into it."""
        self._max_shard_bytes = max_shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._num_bytes = self._num_pending = 0
        self._seen: set[str] = set()

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor under `name`; a full shard is written first. ValueError if a name is added twice."""
        if name in self._seen:
            raise CheckpointError(f"{name}: written twice; each name once")
        if self._pending and self._num_pending + tensor.nbytes > self._max_shard_bytes:
            self._flush()
        self._seen.add(name)
        self._pending[name] = tensor.detach().cpu().contiguous()
        self._num_pending += tensor.nbytes

    def finish(self) -> None:
        """Writes the last shard, renames the shards as on the hub and, if there are several, writes the index."""
        if not self._seen:
            raise CheckpointError("a checkpoint of no tensors; add at least one")
        self._flush()
        total = len(self._shards)
        names = [SINGLE_NAME] if total == 1 else [_shard_name(i, total) for i in range(total)]
        for i, name in enumerate(names):
            (self.folder / _shard_name(i)).rename(self.folder / name)
        if total > 1:
            weight_map = {key: name for name, keys in zip(names, self._shards, strict=True) for key in keys}
            metadata = {"total_size": self._num_bytes}
            write_json(self.folder / INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})

    def _flush(self) -> None:
        """Writes one shard to disk."""
        write_tensors(self.folder / _shard_name(len(self._shards)), self._pending)
        self._shards.append(list(self._pending))
        self._num_bytes += self._num_pending
        self._pending, self._num_pending = {}, 0


@contextmanager
def checkpoint_writer(
    folder: Path, config: Mapping[str, Any], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Iterator[CheckpointWriter]:
    """Yields a writer; `folder` appears with config.json and all shards at the end, or not at all.

    ValueError if the folder already holds something, since its origin is unknown.
    """
    require_own_entries(folder, [], "this checkpoint")
    with replace_folder(folder) as partial:
        writer = CheckpointWriter(partial, max_shard_bytes)
        yield writer
        writer.finish()
        write_json(partial / CONFIG_NAME, dict(config))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes `tensors` in their order as a Hugging Face folder, in shards of at most `max_shard_bytes`."""
    with checkpoint_writer(folder, config, max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)


def _shard_name(i: int, total: int | None = None) -> str:
    """The hub's name of shard i; a temporary name while the total is unknown."""
    return f"shard-{i:05d}.partial" if total is None else f"model-{i + 1:05d}-of-{total:05d}.safetensors"
