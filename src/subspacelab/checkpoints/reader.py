"""A checkpoint read lazily: headers when it is opened, then one shard open at a time."""

import difflib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter
from torch import Tensor

from subspacelab.checkpoints.index import CONFIG_NAME, find_weights
from subspacelab.checkpoints.references import Source, local_source
from subspacelab.checkpoints.scaling import Scale, dequantise, is_scale, scale_of
from subspacelab.checkpoints.shards import LocalFiles, Shard
from subspacelab.checkpoints.tensors import FLOATING, FP8, TensorInfo, digest_of_pieces
from subspacelab.checkpoints.validation import quantisation, read_checked, require_finite
from subspacelab.core.errors import CheckpointError

DIGEST_BYTES = 1 << 24
"""Bytes of a tensor that are hashed per step."""


class Files(Protocol):
    """Access to a checkpoint's bytes: on this disk (`LocalFiles`), or by ranges (`RangedFiles`)."""

    infos: dict[str, TensorInfo]
    """Name -> info in file order, known without reading data."""
    num_workers: int
    """Useful number of parallel reads."""

    def ahead(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Requests these tensors in advance, for the time of the block."""

    def open(self, shard: str) -> Shard:
        """The named weight file."""

    def find_file(self, name: str) -> Path | None:
        """A small file beside the weights, on this disk; None if there is no such file."""


class Checkpoint:
    """The tensors of one checkpoint by name; use as a context manager, made by `open_source`."""

    def __init__(self, source: Source, files: Files, config: dict[str, Any]) -> None:
        self.source = source
        """Where the checkpoint comes from."""
        self.config = config
        """The content of config.json; {} without one."""
        if not files.infos:
            raise CheckpointError(f"{source.reference}: holds no tensors; save or download it again")
        self._files = files
        self._infos = files.infos
        self._shard: tuple[str, Shard] | None = None

    def __repr__(self) -> str:
        return f"<Checkpoint {self.source.reference}: {len(self._infos)} tensors, {self.num_entries:,} entries>"

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shard = None

    @property
    def names(self) -> list[str]:
        """The keys in the files, sorted."""
        return sorted(self._infos)

    @property
    def num_entries(self) -> int:
        """Number of entries of all tensors: the parameter count. Tied weights are stored, and counted, once."""
        return sum(info.num_entries for info in self._infos.values())

    def names_in_file_order(self) -> list[str]:
        """The keys in the order of their data, shard by shard: each shard is opened once and read sequentially."""
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype, size and shard of a tensor, without reading it; ValueError for an unknown name."""
        if name not in self._infos:
            near = difflib.get_close_matches(name, self._infos, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CheckpointError(f"{name}: no such tensor in {self.source.reference}{hint}")
        return self._infos[name]

    def quantisation(self, name: str) -> str | None:
        """The quantisation method of the tensor `name`; None if its entries are the weights themselves."""
        return quantisation(name, self.info(name).dtype, self._infos, self.config)

    def scale(self, name: str) -> Scale | None:
        """The scale that dequantises an FP8 weight; None for any other tensor.

        CheckpointError, naming both tensors, if the shape of the scale does not fit.
        """
        return scale_of(self.info(name).name, self._infos, self.config)

    def is_scale(self, name: str) -> bool:
        """Whether `name` is the scale of a quantised weight rather than a weight."""
        return is_scale(name, self._infos)

    def require_floating(self, name: str) -> None:
        """ValueError, naming the tensor and the remedy, unless `read` gives floating-point weights."""
        info = self.info(name)
        if self._readable_scale(info) is None and not info.is_floating:
            raise CheckpointError(f"{name}: stored as {info.dtype}, needed one of {', '.join(FLOATING)}; leave it out")

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype; an FP8 weight is multiplied by its scale and returned as float32.

        Copy it before writing to it: torch files are mapped. ValueError for weights quantised in any other way.
        """
        info = self.info(name)
        scale = self._readable_scale(info)
        stored = self._open(info.shard).read(name)
        return stored if scale is None else self._dequantised(stored, scale, 0)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start:stop of the first axis, in the same form as `read`."""
        info = self.info(name)
        scale = self._readable_scale(info)
        if not 0 <= start <= stop <= (info.shape or (0,))[0]:
            raise CheckpointError(f"{name}: rows {start}:{stop} are outside its shape {list(info.shape)}")
        stored = self._open(info.shard).read_rows(name, start, stop)
        return stored if scale is None else self._dequantised(stored, scale, start)

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Each name with its tensor, in the order given. For small tensors: from the hub all are requested at once."""
        for name in names:
            self.info(name)
        with self._files.ahead(names):
            yield from ((name, self.read(name)) for name in names)

    def read_chunks(self, name: str, num_rows: int) -> Iterator[Tensor]:
        """The rows of the first axis in order, `num_rows` at a time; from the hub some chunks are requested ahead."""
        end, ahead = self.info(name).shape[0], self._files.num_workers
        spans = [(start, min(start + num_rows, end)) for start in range(0, end, num_rows)]
        if ahead == 1:  # a disk is not waited for
            yield from (self.read_rows(name, *span) for span in spans)
            return
        asked: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(ahead) as pool:
            try:
                for span in spans:
                    asked.append(pool.submit(self.read_rows, name, *span))
                    if len(asked) == ahead:
                        yield asked.popleft().result()
                while asked:
                    yield asked.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def find_file(self, name: str) -> Path | None:
        """The path of a small file beside the weights, such as tokenizer.json; None if there is none."""
        return self._files.find_file(name)

    def digest(self, name: str) -> str:
        """SHA-256 of dtype, shape and bytes, in hexadecimal: equal contents in any container have equal digests.

        For an FP8 weight, the digest of the dequantised float32 values.
        """
        info = self.info(name)
        dtype = info.dtype if self.scale(name) is None else "F32"
        rows = info.shape[0] if info.shape else 0
        step = max(1, DIGEST_BYTES * rows // max(info.nbytes, 1))
        pieces = (self.read_rows(name, i, min(i + step, rows)) for i in range(0, rows, step))
        return digest_of_pieces(dtype, info.shape, pieces if info.shape else [self.read(name)])

    def _open(self, shard: str) -> Shard:
        """The named shard; the shard opened before is closed."""
        current = self._shard
        if current is None or current[0] != shard:
            self._shard = None
            self._shard = current = (shard, self._files.open(shard))
        return current[1]

    def _readable_scale(self, info: TensorInfo) -> Scale | None:
        """The scale to read a tensor with; None if it needs none. CheckpointError for any other quantised tensor."""
        scale, method = self.scale(info.name), self.quantisation(info.name)
        if scale is None and method is not None:
            lacking = " without one scale of its own" if info.dtype in FP8 else ""
            raise CheckpointError(
                f"{info.name}: quantised ({method}, stored as {info.dtype}{lacking}), its entries are codes and not "
                "weights; use the unquantised checkpoint of this model"
            )
        return scale

    def _dequantised(self, codes: Tensor, scale: Scale, start: int) -> Tensor:
        """The weights that `codes`, rows from `start` on, stand for; CheckpointError for a NaN or infinite scale."""
        first, last = scale.rows(start, start + len(codes))
        shard = self._open(scale.info.shard)
        whole = scale.info.num_entries == 1  # which may be a scalar, without rows
        factors = shard.read(scale.info.name) if whole else shard.read_rows(scale.info.name, first, last)
        require_finite(scale.info.name, factors.float())
        factors = factors.reshape(1 if whole else last - first, *scale.shape[1:])
        return dequantise(codes, factors, scale.block, start - first * scale.block[0])


def open_source(place: Source | Path | str) -> Checkpoint:
    """Opens a resolved source, a folder, or one weight file; reads headers only.

    ValueError, in one line, if a file is missing, truncated, a git-LFS pointer, or holds more than tensors.
    """
    source = place if isinstance(place, Source) else local_source(Path(place))
    if not source.folder.exists():
        raise CheckpointError(f"{source.folder}: no such checkpoint folder or file")
    files = find_weights(source.folder)
    return Checkpoint(source, LocalFiles(files), read_config(files.folder / CONFIG_NAME))


def config_errors() -> tuple[type[Exception], ...]:
    """Exceptions that a config.json that describes no model may cause: the type depends on the mistake."""
    from huggingface_hub.errors import StrictDataclassError

    plain = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
    return StrictDataclassError, *plain


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.json, {} if there is no such file; ValueError if it is not a JSON object."""
    if not path.exists():
        return {}
    return read_checked(path, TypeAdapter(_Config), "the config of a model").model_dump(exclude_unset=True)


class _Config(BaseModel, extra="allow"):
    """The keys of config.json that this code reads; the others are kept unchecked."""

    model_type: str | None = None
    architectures: list[str] | None = None
