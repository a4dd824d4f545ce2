"""Pictures with a question and a box, in the parquet schema of textVQA_groundingtask_bbox."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, FiniteFloat, ValidationError

from subspacelab.core.files import write_beside
from subspacelab.core.parquet import require_bounded
from subspacelab.data.decoding import decode_rgb

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.list_(pa.string())),
        ("dataset_id", pa.string()),
        ("bbox", pa.list_(pa.float64())),
    ]
)
COLUMNS = tuple(SCHEMA.names)


@dataclass(frozen=True)
class GroundingRow:
    """One picture with its question, answers and box."""

    image_bytes: bytes
    """The encoded picture (PNG, JPEG, ...)."""
    image_path: str
    """Its file name."""
    question: str
    """A question about one thing in the picture."""
    answers: tuple[str, ...]
    """Answers given by people; one or more."""
    dataset_id: str
    """Id of the row."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels of the original picture."""

    def image(self) -> Image.Image:
        """The picture in RGB; ValueError, naming the row, if the bytes are not a picture."""
        return decode_rgb(self.image_bytes, f"row {self.dataset_id}")


def write_grounding(path: Path, rows: Iterable[GroundingRow], *, rows_per_group: int = 100) -> int:
    """Writes rows as they arrive, one row group at a time, and returns their number; equal rows give equal bytes."""
    written, group = 0, []
    with write_beside(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for row in rows:
            group.append(_record(row))
            written += 1
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    return written


def read_grounding(path: Path, *, limit: int | None = None, batch_rows: int = 32) -> Iterator[GroundingRow]:
    """Rows of a parquet file, or of a folder's parquet files in the order of their names; a few in memory at a time.

    `answer` may be a string or a list of strings. An image without a path and a numeric dataset_id are accepted.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} must be at least 1; leave it out to read every row")
    left = limit
    for file in grounding_files(path):
        _check_columns(file, pq.read_schema(file).names)
        for number, record in enumerate(_records(file, batch_rows), 1):
            yield _row(file, number, record)
            left = None if left is None else left - 1
            if left == 0:
                return


def _records(file: Path, batch_rows: int) -> Iterator[dict[str, Any]]:
    """Rows as they are stored, one batch in memory at a time."""
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_rows, columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except (OSError, ValueError, ArithmeticError, pa.ArrowException) as e:  # pages, text and dates that are damaged
        raise ValueError(f"{file}: damaged ({str(e).splitlines()[0]}); restore it") from e


def grounding_files(path: Path) -> list[Path]:
    """The parquet files at `path`; ValueError if there are none, or if one is not a parquet file."""
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise ValueError(f"{path}: no parquet file there; pass a .parquet file or a folder that holds some")
    for file in files:
        require_bounded(file, COLUMNS)
    return files


def count_grounding(path: Path) -> int:
    """Number of rows, from the files' footers."""
    return sum(pq.read_metadata(file).num_rows for file in grounding_files(path))


def _check_columns(file: Path, names: list[str]) -> None:
    missing = [c for c in COLUMNS if c not in names]
    if missing:
        raise ValueError(f"{file}: columns {missing} are missing, got {names}; this is not a grounding data set")


def _record(row: GroundingRow) -> dict[str, Any]:
    return {
        "image": {"bytes": row.image_bytes, "path": row.image_path},
        "question": row.question,
        "answer": list(row.answers),
        "dataset_id": row.dataset_id,
        "bbox": list(row.bbox),
    }


class _Image(BaseModel):
    bytes: bytes
    path: str | None = None


class _Record(BaseModel):
    """A row as it is stored, with numbers as numbers."""

    image: _Image
    question: str
    answer: str | list[str]
    dataset_id: str | int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


def _row(file: Path, number: int, record: dict[str, Any]) -> GroundingRow:
    try:
        row = _Record.model_validate(record | {"bbox": _as_tuple(record["bbox"])}, strict=True)
    except ValidationError as e:
        problem = e.errors()[0]
        where, got = ".".join(map(str, problem["loc"])), repr(problem["input"])[:80]
        raise ValueError(
            f"{file}: row {number} ({str(record['dataset_id'])[:80]!r}): {where}: {problem['msg']}, got {got};"
            " correct or drop the row"
        ) from e
    return GroundingRow(
        image_bytes=row.image.bytes,
        image_path=row.image.path or "",
        question=row.question,
        answers=(row.answer,) if isinstance(row.answer, str) else tuple(row.answer),
        dataset_id=str(row.dataset_id),
        bbox=row.bbox,
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
