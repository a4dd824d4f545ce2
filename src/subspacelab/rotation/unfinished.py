"""The rows of an unfinished comparison, stored weight by weight, so that a killed run continues."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.core.errors import CheckpointError
from subspacelab.core.files import is_partial, remove_folder, remove_partials
from subspacelab.core.ownership import require_no_links, require_same_job
from subspacelab.rotation.factors import plain_file_name
from subspacelab.rotation.metrics import Value

UNFINISHED = "unfinished"
"""Folder of these rows inside that of the tables."""
FORMAT = 2  # raised when the numbers of a row change, so that no older one is kept
_KEY = "subspacelab"
_SPECTRA = "spectra"


@dataclass(frozen=True)
class Record:
    """Metadata of a weight's file, beside its spectra."""

    job: dict[str, Any]
    """Settings of the measurement."""
    weight: str
    """Canonical name."""
    digests: list[str]
    """Content of the weight in each checkpoint (`Chain.digests`)."""
    rows: list[dict[str, Value]]
    """One row per link, or one for a chain of three."""


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True)
class Kept:
    """The rows of one weight."""

    digests: list[str]
    """Content of the weight when it was measured."""
    rows: list[dict[str, Value]]
    """Rows of the weight."""
    spectra: Float[Tensor, "checkpoints r"]
    """Singular values of the weight."""


class KeptRows:
    """The folder `unfinished` of a comparison. Its user must lock it against other processes (`report_folder`)."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        """The folder."""
        self.job: dict[str, Any] = json.loads(json.dumps({**job, "format": FORMAT}))
        """Settings of the measurement."""

    def read(self) -> dict[str, Kept]:
        """Weight -> its rows; ValueError, naming the file, if it is invalid or from other settings."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise ValueError(f"{self.folder}: no folder of rows, and would be replaced; move it away")
        require_no_links(self.folder)
        paths = sorted(self.folder.iterdir()) if self.folder.exists() else []
        return dict(self._read(path) for path in paths if not is_partial(path.name))

    def _read(self, path: Path) -> tuple[str, Kept]:
        try:
            tensors, said = read_tensors(path)
            record = _RECORD.validate_json(said[_KEY])
            if path.name != plain_file_name(record.weight):
                raise ValueError("the rows of another weight")
            spectra = tensors[_SPECTRA]
        except (CheckpointError, ValidationError, KeyError, ValueError) as e:
            raise ValueError(f"{path}: not what an unfinished 'rotation compare' leaves; move it away") from e
        require_same_job(path, record.job, self.job)
        return record.weight, Kept(record.digests, record.rows, spectra)

    def keep(self, weight: str, kept: Kept) -> None:
        """Writes the rows of a weight, whole or not at all."""
        record = {"weight": weight, "job": self.job, "digests": kept.digests, "rows": kept.rows}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / plain_file_name(weight)
        write_tensors(path, {_SPECTRA: kept.spectra}, (_KEY, json.dumps(record)))

    def clean(self) -> None:
        """Removes files that killed processes have left incomplete."""
        remove_partials(self.folder)

    def remove(self) -> None:
        """Removes the folder; `read` has checked that it holds nothing else."""
        if self.folder.exists():
            remove_folder(self.folder)


def still_holds(kept: Kept | None, digests: Sequence[str]) -> bool:
    """Whether there are rows, and they belong to these weights."""
    return kept is not None and kept.digests == list(digests)
