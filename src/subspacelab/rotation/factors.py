"""The factors of a decomposed checkpoint: one safetensors file per weight, and an index.json that lists them."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from subspacelab.checkpoints import require_finite, tensor_digest, write_tensors
from subspacelab.checkpoints.tensors import FP8, SIGNIFICANT_BITS
from subspacelab.core.files import read_json, replace_folder, require_regular, write_json
from subspacelab.core.ownership import require_own_entries
from subspacelab.linalg.svd import SVD
from subspacelab.rotation.config import Format

MAX_LENGTH = 200
"""Longest name of a weight within a file name: most systems take 255 bytes, and a partial file's name needs 54 more."""
PLAIN = re.compile(rf"(?!\.)[ -.0-\[\]-~]{{1,{MAX_LENGTH}}}")
"""Pattern of names that are the same on every system and in every locale: printable ASCII without separators, not
hidden."""


def file_names(weights: Iterable[str]) -> dict[str, str]:
    """A file name for each weight of one checkpoint; names that differ only in case get a digest."""
    names = list(weights)
    spellings = Counter(name.lower() for name in names)
    return {
        name: plain_file_name(name)
        if PLAIN.fullmatch(name) and spellings[name.lower()] == 1
        else hashed_file_name(name)
        for name in names
    }


def plain_file_name(weight: str) -> str:
    """`<weight>.safetensors`, or a name with a digest if that is not a valid file name."""
    return f"{weight}.safetensors" if PLAIN.fullmatch(weight) else hashed_file_name(weight)


def hashed_file_name(weight: str) -> str:
    """The readable part of the name and a unique digest; the record in the file has the full name."""
    readable = re.sub(r"[^\w.\[\]-]", "_", weight, flags=re.ASCII).lstrip(".")[: MAX_LENGTH // 2]
    return f"{readable}-{hashlib.sha256(weight.encode()).hexdigest()[:16]}.safetensors"


INDEX = "index.json"
FORMAT = 1  # raised when the numbers of a decomposition change, so that no older file is kept
METADATA_KEY = "subspacelab"

FORMATS: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Storage dtypes of U and Vh; S is always float32."""


@dataclass(frozen=True)
class FactorRecord:
    """Facts about one weight's factors; also the metadata of their file."""

    weight: str
    """Key of the weight in its checkpoint; `key[e]` for expert e of a fused tensor."""
    canonical_name: str
    """The name that all layouts of one model share."""
    original_shape: tuple[PositiveInt, ...]
    """Shape of the stored tensor."""
    matrix_shape: tuple[PositiveInt, PositiveInt]
    """Shape of the decomposed matrix: the first axis and all others joined; for an expert its two axes."""
    storage_dtype: Literal["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]
    """Dtype of the stored entries, as safetensors names it; FP8 is decomposed as code times scale."""
    rank: PositiveInt
    """Number of singular triples kept."""
    method: Literal["gram", "lapack"]
    """The method used: gram or lapack."""
    requested_method: str
    """The requested method: auto, gram or lapack."""
    relative_reconstruction_error: float
    """||W - U diag(S) Vh||_F / ||W||_F, for the factors as they are stored."""
    orthogonality_error: float
    """Largest entry of |U^T U - I| and |Vh Vh^T - I|, for the factors as they are stored."""
    source_digest: str
    """SHA-256 of the stored tensor, or expert, that was decomposed."""
    expert: int | None = None
    """Index of the expert in a fused tensor; None for an ordinary weight."""
    file: str = ""
    """Name of the factors' file: `<weight>.safetensors` if that is a valid name."""
    factor_digests: dict[str, str] | None = None
    """SHA-256 of U, S and Vh; None in folders of older versions."""
    format: int = FORMAT
    """Version of this record."""
    factor_dtype: Format = "float32"
    """Storage dtype of U and Vh."""
    is_oriented: bool = True
    """False for an expert whose layout, [out, in] or [in, out], is unknown."""

    def __post_init__(self) -> None:
        if self.rank > min(self.matrix_shape):
            raise ValueError(f"rank {self.rank} of a matrix of {self.matrix_shape}")
        if not self.file:
            object.__setattr__(self, "file", plain_file_name(self.weight))
        if self.file not in (plain_file_name(self.weight), hashed_file_name(self.weight)):
            raise ValueError(f"{self.file!r} is no file name of {self.weight!r}")

    @property
    def key(self) -> str:
        """Key of the stored tensor."""
        return self.weight if self.expert is None else self.weight.removesuffix(f"[{self.expert}]")

    @property
    def is_full(self) -> bool:
        """Whether all singular triples are stored, in float32, so that the weight can be recovered."""
        return self.rank == min(self.matrix_shape) and self.factor_dtype == "float32"

    def as_json(self) -> dict[str, Any]:
        """The fields by name, without newer fields at their default, so that older folders keep their bytes."""
        later = {"factor_dtype": "float32", "is_oriented": True}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


_RECORD = TypeAdapter(FactorRecord)


def digest_factors(svd: SVD) -> dict[str, str]:
    """SHA-256 of each factor, for its record."""
    return {key: tensor_digest(tensor.cpu()) for key, tensor in _by_key(svd).items()}


def _by_key(svd: SVD) -> dict[str, Tensor]:
    return {"U": svd.U, "S": svd.S, "Vh": svd.Vh}


def write_factors(folder: Path, svd: SVD, record: FactorRecord) -> None:
    """Writes U, S and Vh of one weight to `folder`, whole or not at all."""
    write_tensors(folder / record.file, _by_key(svd), (METADATA_KEY, json.dumps(record.as_json(), sort_keys=True)))


def read_record(path: Path) -> FactorRecord | None:
    """The record of a factor file; None if there is no such file, or if it is not one of ours."""
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as f:
            record = _RECORD.validate_json((f.metadata() or {})[METADATA_KEY])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return record if record.file == path.name else None


def factors_hold(folder: Path, record: FactorRecord) -> bool:
    """Whether the factors in a record's file are undamaged: their digests are those in the record."""
    try:
        return record.factor_digests is not None and bool(_read_tensors(folder, record, "U", "S", "Vh"))
    except ValueError:
        return False


@dataclass(frozen=True)
class _Index:
    """index.json."""

    weights: dict[str, FactorRecord]
    skipped: dict[str, str]
    source: dict[str, str | None]
    origin: str | None = None


_INDEX = TypeAdapter(_Index)


def write_index(
    folder: Path,
    records: Mapping[str, FactorRecord],
    skipped: Mapping[str, str],
    source: Mapping[str, str | None],
    origin: str | None = None,
) -> None:
    """Writes the index, which makes `folder` a decomposed checkpoint."""
    index = asdict(_Index({}, dict(skipped), dict(source), origin))
    write_json(folder / INDEX, index | {"weights": {weight: record.as_json() for weight, record in records.items()}})


def storage_notes(storage: Mapping[str, str], doubtful: Sequence[str]) -> tuple[str, ...]:
    """Notes on the dtypes that the weights are stored in, and on weights whose layout is unknown."""
    notes = []
    for dtype, count in Counter(dtype for dtype in storage.values() if dtype in FP8).items():
        least = 50 * 2.0 ** -SIGNIFICANT_BITS[dtype]
        notes.append(
            f"{count} weights are stored in FP8 ({dtype}) and read as code times scale: an entry is known to half a "
            f"step, {least:.2g} to {2 * least:.2g} % of itself"
        )
    if doubtful:
        notes.append(
            f"of {len(doubtful)} fused experts, such as {doubtful[0]}, neither names nor sizes tell whether they are "
            "[out, in] or [in, out]: taken as they are stored, as [out, in]"
        )
    return tuple(notes)


@dataclass(frozen=True)
class Decomposition:
    """A decomposed checkpoint on disk; factors are read on demand."""

    folder: Path
    """Folder of the factors."""
    weights: dict[str, FactorRecord]
    """Canonical name -> record of the weight's factors."""
    skipped: dict[str, str]
    """Key -> reason why the tensor was skipped."""
    source: dict[str, str | None]
    """Reference and revision of the checkpoint."""
    origin: str | None = None
    """Digest of the relative path to a local checkpoint, which distinguishes two of one name."""
    kept_by: Any = field(default=None, repr=False, compare=False)
    """Object that must live as long as this one, such as a temporary folder."""

    def __iter__(self) -> Iterator[tuple[str, SVD]]:
        """Canonical name and factors of every weight, read one at a time."""
        return ((name, self.read(name)) for name in self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def save(self, folder: Path | str) -> None:
        """Copies factors and index to `folder`, whole or not at all; ValueError if something is already there."""
        require_own_entries(Path(folder), (), "a copy of a decomposed checkpoint")
        with replace_folder(Path(folder)) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: Path | str) -> "Decomposition":
        """Opens what `save`, `decompose` or `rotation decompose` wrote."""
        return read_decomposition(Path(folder))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how weights and factors are stored."""
        records = self.weights.values()
        notes = storage_notes(
            {record.weight: record.storage_dtype for record in records},
            [record.weight for record in records if not record.is_oriented],
        )
        rounded = [record for record in records if record.factor_dtype != "float32"]
        if rounded:
            worst = max(record.relative_reconstruction_error for record in rounded)
            notes += (
                f"{len(rounded)} weights have factors in {rounded[0].factor_dtype} (reconstruction error up to "
                f"{worst:.1e}): they do not give the entries back, and what is measured of updates is empty",
            )
        return notes

    @property
    def metrics(self) -> dict[str, float]:
        """Number of weights and largest errors."""
        records = self.weights.values()
        return {
            "num_weights": len(self.weights),
            "num_skipped": len(self.skipped),
            "max_relative_reconstruction_error": max(r.relative_reconstruction_error for r in records),
            "max_orthogonality_error": max(r.orthogonality_error for r in records),
        }

    def read(self, canonical_name: str) -> SVD:
        """U [m, r], S [r], Vh [r, n] of one weight, float32; ValueError, naming the file, if missing or broken."""
        record = self.weights[canonical_name]
        u, s, vh = _read_tensors(self.folder, record, "U", "S", "Vh")
        return SVD(u.float(), s, vh.float(), record.method)

    def spectrum(self, canonical_name: str) -> Float[Tensor, " r"]:
        """Only the singular values."""
        return _read_tensors(self.folder, self.weights[canonical_name], "S")[0]


def _read_tensors(folder: Path, record: FactorRecord, *keys: str) -> list[Tensor]:
    path = folder / record.file
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in keys}
        for key, tensor in tensors.items():
            _require_as_recorded(key, tensor, record)
    except (OSError, ValueError, SafetensorError) as e:
        raise ValueError(
            f"{path}: factors of {record.weight!r} are missing or broken ({str(e).splitlines()[0]}); "
            "run 'subspacelab rotation decompose' again"
        ) from e
    return list(tensors.values())


def _require_as_recorded(key: str, tensor: Tensor, record: FactorRecord) -> None:
    m, n = record.matrix_shape
    wanted = {"U": (m, record.rank), "S": (record.rank,), "Vh": (record.rank, n)}[key]
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{key} is {list(tensor.shape)}, {INDEX} says {list(wanted)}")
    require_finite(key, tensor)
    if record.factor_digests is not None and record.factor_digests.get(key) != tensor_digest(tensor):
        raise ValueError(f"{key} is not what was written: its digest differs")


def read_decomposition(folder: Path) -> Decomposition:
    """Reads the index of a decomposed checkpoint; ValueError, with the remedy, for a folder without one."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a decomposed checkpoint (no {INDEX}); run 'subspacelab rotation decompose' first"
        )
    try:
        index = _INDEX.validate_python(read_json(path))
    except ValidationError as e:
        wrong = e.errors()[0]
        raise ValueError(
            f"{path}: not the index of a decomposed checkpoint ({'.'.join(map(str, wrong['loc']))}: {wrong['msg']}); "
            "move it away and run 'subspacelab rotation decompose' again"
        ) from e
    weights = {record.canonical_name: record for record in index.weights.values()}
    if len(weights) < len(index.weights):
        raise ValueError(f"{path}: two weights share one canonical name; leave one out and decompose again")
    return Decomposition(folder, weights, index.skipped, index.source, index.origin)
