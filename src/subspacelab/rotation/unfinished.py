"""The rows of a comparison that is not finished: kept weight by weight, so that a killed one continues."""

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
"""The folder of these rows within that of the tables."""
FORMAT = 1  # raised when the numbers of a row change, so that no older one is kept
_KEY = "subspacelab"
_SPECTRA = "spectra"


@dataclass(frozen=True)
class Record:
    """What is said in the file of a weight, beside its spectra."""

    job: dict[str, Any]
    """By which settings it was measured."""
    weight: str
    """Canonical name."""
    digests: list[str]
    """What the weight was in each checkpoint (`Chain.digests`)."""
    rows: list[dict[str, Value]]
    """A row per link, or one of a chain of three."""


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True)
class Kept:
    """The rows of one weight."""

    digests: list[str]
    """What the weight was."""
    rows: list[dict[str, Value]]
    """Its rows."""
    spectra: Float[Tensor, "checkpoints r"]
    """Its singular values."""


class KeptRows:
    """The folder `unfinished` of a comparison. Whoever changes it keeps other processes off (`report_folder`)."""

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        """Where the rows are."""
        self.job: dict[str, Any] = json.loads(json.dumps({**job, "format": FORMAT}))
        """By which settings they are measured."""

    def read(self) -> dict[str, Kept]:
        """Weight to what is there; ValueError, naming it, for what is no such row, or one of other settings."""
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
        """Removes what killed processes have left half-written."""
        remove_partials(self.folder)

    def remove(self) -> None:
        """Removes the folder, which `read` has found to hold nothing else."""
        if self.folder.exists():
            remove_folder(self.folder)


def still_holds(kept: Kept | None, digests: Sequence[str]) -> bool:
    """Whether rows are there, and are those of these weights."""
    return kept is not None and kept.digests == list(digests)
