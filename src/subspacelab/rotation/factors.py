"""The factors of a decomposed checkpoint: one safetensors file per weight, and an index.json that lists them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from subspacelab.checkpoints import require_finite, write_tensors
from subspacelab.files import read_json, write_json
from subspacelab.linalg.svd import SVD

INDEX = "index.json"
FORMAT = 1  # raised when the numbers of a decomposition change, so that no older file is kept
METADATA_KEY = "subspacelab"


@dataclass(frozen=True)
class FactorRecord:
    """What is known of one weight's factors; also the metadata of their file."""

    weight: str
    """Key of the weight in its checkpoint."""
    canonical_name: str
    """The name that all layouts of one model share."""
    original_shape: tuple[int, ...]
    """Shape in the checkpoint."""
    matrix_shape: tuple[int, int]
    """Shape of the matrix that was decomposed: the first axis, and all others as one."""
    storage_dtype: str
    """Type of the stored entries, as safetensors names it (`BF16`, `F32`, ...)."""
    rank: int
    """Number of singular triples kept."""
    method: Literal["gram", "lapack"]
    """How they were computed: gram or lapack."""
    requested_method: str
    """What was asked for: auto, gram or lapack."""
    relative_reconstruction_error: float
    """||W - U diag(S) Vh||_F / ||W||_F."""
    orthogonality_error: float
    """Largest entry of |U^T U - I| and |Vh Vh^T - I|."""
    source_digest: str
    """SHA-256 of the stored tensor that was decomposed."""
    format: int = FORMAT
    """Version of these numbers."""

    @property
    def file(self) -> str:
        """Name of the factors' file."""
        return f"{self.weight}.safetensors"

    @property
    def is_full(self) -> bool:
        """Whether all singular triples were kept, so that the weight can be had back."""
        return self.rank == min(self.matrix_shape)


def _as_record(values: Mapping[str, Any]) -> FactorRecord:
    m, n = values["matrix_shape"]
    fields = {k: v for k, v in values.items() if k != "file"}
    return FactorRecord(**fields | {"original_shape": tuple(values["original_shape"]), "matrix_shape": (m, n)})


def write_factors(folder: Path, svd: SVD, record: FactorRecord) -> None:
    """Writes U, S and Vh of one weight to `folder`, whole or not at all."""
    tensors = {"U": svd.U, "S": svd.S, "Vh": svd.Vh}
    write_tensors(folder / record.file, tensors, (METADATA_KEY, json.dumps(asdict(record), sort_keys=True)))


def read_record(path: Path) -> FactorRecord | None:
    """The record of a factor file, or None if there is no such file or not one of ours."""
    try:
        with safe_open(path, framework="pt") as f:
            return _as_record(json.loads((f.metadata() or {})[METADATA_KEY]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def write_index(
    folder: Path, records: Mapping[str, FactorRecord], skipped: Mapping[str, str], source: Mapping[str, Any]
) -> None:
    """Writes the list that makes `folder` a decomposed checkpoint."""
    weights = {name: asdict(record) | {"file": record.file} for name, record in records.items()}
    write_json(folder / INDEX, {"weights": weights, "skipped": dict(skipped), "source": dict(source)})


@dataclass(frozen=True)
class Decomposition:
    """A decomposed checkpoint on disk; the factors are read when asked for."""

    folder: Path
    """Where it lies."""
    weights: dict[str, FactorRecord]
    """Canonical name to what is known of the weight."""
    skipped: dict[str, str]
    """Checkpoint key to the reason why the tensor was left out."""
    source: dict[str, Any]
    """Reference and revision of the checkpoint."""

    @property
    def metrics(self) -> dict[str, float]:
        """The decomposition in a few numbers: how many weights, and the largest errors."""
        records = self.weights.values()
        return {
            "num_weights": len(self.weights),
            "num_skipped": len(self.skipped),
            "max_relative_reconstruction_error": max(r.relative_reconstruction_error for r in records),
            "max_orthogonality_error": max(r.orthogonality_error for r in records),
        }

    def read(self, canonical_name: str) -> SVD:
        """U [m, r], S [r], Vh [r, n] of one weight, float32; a ValueError names a file that is gone or broken."""
        u, s, vh = self._read_tensors(canonical_name, "U", "S", "Vh")
        return SVD(u, s, vh, self.weights[canonical_name].method)

    def spectrum(self, canonical_name: str) -> Float[Tensor, " r"]:
        """The singular values alone."""
        return self._read_tensors(canonical_name, "S")[0]

    def _read_tensors(self, canonical_name: str, *keys: str) -> list[Tensor]:
        record = self.weights[canonical_name]
        path = self.folder / record.file
        try:
            with safe_open(path, framework="pt") as f:
                tensors = {key: f.get_tensor(key) for key in keys}
            for key, tensor in tensors.items():
                _require_shape(key, tensor, record)
                require_finite(key, tensor)
        except (OSError, ValueError, SafetensorError) as e:
            raise ValueError(
                f"{path}: factors of {record.weight!r} are missing or broken ({str(e).splitlines()[0]}); "
                "run 'subspacelab rotation decompose' again"
            ) from e
        return list(tensors.values())


def _require_shape(key: str, tensor: Tensor, record: FactorRecord) -> None:
    m, n = record.matrix_shape
    wanted = {"U": (m, record.rank), "S": (record.rank,), "Vh": (record.rank, n)}[key]
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{key} is {list(tensor.shape)}, {INDEX} says {list(wanted)}")


def read_decomposition(folder: Path) -> Decomposition:
    """Reads the index of a decomposed checkpoint; a folder without one is a ValueError that says what to do."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a decomposed checkpoint (no {INDEX}); run 'subspacelab rotation decompose' first"
        )
    index = read_json(path)
    try:
        records = [_as_record(values) for values in index["weights"].values()]
        weights = {record.canonical_name: record for record in records}
        if len(weights) < len(records):
            raise ValueError(f"{path}: two weights share one canonical name")
        return Decomposition(folder, weights, index["skipped"], index["source"])
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{path}: not the index of a decomposed checkpoint ({e!r}); run 'subspacelab rotation decompose' again"
        ) from e
