"""Results of earlier runs in a folder of factors: their source, and which files are ours."""

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from subspacelab.checkpoints import Source
from subspacelab.checkpoints.references import POINTER_NAME
from subspacelab.core.files import read_json, seen_from, write_json
from subspacelab.core.ownership import require_same_job
from subspacelab.core.references import canonical, of_pipeline
from subspacelab.rotation.factors import INDEX, FactorRecord, read_decomposition, read_record

UNFINISHED = "unfinished.json"
"""File in place of the index while a run is at work, and after a kill."""


@dataclass(frozen=True)
class Origin:
    """The source of factors, without absolute paths, which would tie them to one machine."""

    source: dict[str, str | None]
    """Reference and revision of the checkpoint; for an absolute path only its name."""
    place: str | None
    """For a local checkpoint, a digest of its relative path from the factors, which distinguishes two of one name."""

    def is_same(self, other: "Origin") -> bool:
        """Whether both are the same checkpoint, whatever it now holds; checkpoints in memory are never the same."""
        if self.place is None or other.place is None:
            return bool(canonical(self.source) == canonical(other.source)) and (
                self.source.get("revision") is not None or of_pipeline(self.source.get("reference") or "")
            )
        return self.place == other.place

    def __str__(self) -> str:
        return "@".join(value for value in (self.source.get("reference"), self.source.get("revision")) if value)


def origin_of(source: Source, folder: Path) -> Origin:
    """The origin of factors of `source` that go to `folder`."""
    reference = source.name if Path(source.reference).is_absolute() else source.reference
    place = None
    if source.revision is None and not of_pipeline(source.reference) and source.folder.exists():
        way = seen_from(folder, source.folder)
        place = hashlib.sha256(os.fsencode(way)).hexdigest()
    return Origin({"reference": reference, "revision": source.revision}, place)


@dataclass(frozen=True)
class _Unfinished:
    """unfinished.json."""

    origin: Origin
    files: list[str]

    def __post_init__(self) -> None:
        if any(Path(file).name != file for file in self.files):
            raise ValueError("a file elsewhere")


_UNFINISHED = TypeAdapter(_Unfinished)


@dataclass(frozen=True)
class Earlier:
    """Existing factors in a folder."""

    folder: Path
    """The folder."""
    origin: Origin | None
    """Their source; None if there are none."""
    files: frozenset[str]
    """File names of factors from earlier runs; no other file is replaced or removed."""
    records: dict[str, FactorRecord]
    """Weight -> record of its factors."""
    is_finished: bool
    """Whether they are a complete decomposition, which a failure must not destroy."""

    @property
    def entries(self) -> frozenset[str]:
        """Names of all files that earlier runs may have made."""
        return self.files | {INDEX, UNFINISHED}

    def require_settings(self, rank: int | None, method: str, factor_dtype: str) -> None:
        """ValueError, naming both, if existing factors were made with other settings."""
        for record in self.records.values():
            wanted = {"rank": rank or "all", "method": method, "format": factor_dtype}
            same_rank = record.rank == (rank or min(record.matrix_shape))
            kept = "all" if record.rank == min(record.matrix_shape) else record.rank
            made_by = {"method": record.requested_method, "format": record.factor_dtype}
            found = made_by | {"rank": wanted["rank"] if same_rank else kept}
            require_same_job(self.folder, found, wanted)

    def require_source(self, origin: Origin, source: Source, weight: str, digest: str | None) -> None:
        """ValueError, naming both, if `weight` has factors of another source and content than `digest` (None: gone).

        Equal contents have equal factors, whatever the checkpoint is called.
        """
        record = self.records.get(weight)
        if record is None or record.source_digest == digest or (self.origin and self.origin.is_same(origin)):
            return
        revision = f"@{source.revision}" if source.revision else ""
        raise ValueError(
            f"{self.folder}: holds factors of another checkpoint {str(self.origin)!r}, whose {weight!r} is not that of "
            f"{source.reference + revision!r}; give another `output_dir`, or remove those first"
        )

    def require_own(self, file: str) -> None:
        """ValueError if something that no earlier run made is at the path of a weight's factors."""
        path = self.folder / file
        if path.is_symlink() or (path.exists() and not (path.is_file() and file in self.files)):
            raise ValueError(
                f"{path}: not factors of this checkpoint by these settings, and would be replaced; "
                "give another `output_dir`, or move it away"
            )


def read_earlier(folder: Path) -> Earlier:
    """The results of earlier runs in `folder`; ValueError for an invalid index or list of unfinished work."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file, where a folder of factors would go; give another `output_dir`")
    if (folder / POINTER_NAME).exists():
        raise ValueError(f"{folder}: stands for a checkpoint ({POINTER_NAME}); give another `output_dir`")
    for path in (folder / INDEX, folder / UNFINISHED):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path}: no plain file, and would be replaced; give another `output_dir`")
    unfinished = _read_unfinished(folder / UNFINISHED)
    files = unfinished.files if unfinished else []
    if (folder / INDEX).exists():
        index = read_decomposition(folder)
        records = {record.weight: record for record in index.weights.values()}
        own = frozenset([*files, *(record.file for record in records.values())])
        _require_no_checkpoint(folder, own)
        return Earlier(folder, Origin(index.source, index.origin), own, records, is_finished=True)
    _require_no_checkpoint(folder, files)
    found = [record for file in files if (record := read_record(folder / file))]
    records = {record.weight: record for record in found}
    return Earlier(folder, unfinished.origin if unfinished else None, frozenset(files), records, is_finished=False)


def _require_no_checkpoint(folder: Path, own: Collection[str]) -> None:
    """ValueError if factors would be written among the files of a model."""
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for path in (folder / "config.json", *(path for path in found if path.name not in own)):
        if path.is_file() and read_record(path) is None:
            raise ValueError(
                f"{path}: no factors: this folder is another checkpoint's, or another tool's; give another `output_dir`"
            )


def _read_unfinished(path: Path) -> _Unfinished | None:
    if not path.exists():
        return None
    try:
        return _UNFINISHED.validate_python(read_json(path))
    except ValidationError as e:
        raise ValueError(f"{path}: not what an unfinished 'rotation decompose' leaves; move it away") from e


def begin(earlier: Earlier, origin: Origin, files: Iterable[str]) -> None:
    """Records, before anything else changes, the source and the file names of the folder's factors."""
    earlier.folder.mkdir(parents=True, exist_ok=True)
    all_files = sorted({*files, *earlier.files})
    write_json(earlier.folder / UNFINISHED, asdict(_Unfinished(origin, all_files)))
    (earlier.folder / INDEX).unlink(missing_ok=True)


def remove_stale(earlier: Earlier, current: Iterable[str]) -> None:
    """Removes factors of an earlier run, by their own records, whose weights no longer exist."""
    stale = earlier.files - set(current)
    for path in list(earlier.folder.iterdir()):
        if path.name in stale and read_record(path) is not None:
            path.unlink()
