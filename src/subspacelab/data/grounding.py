"""Pictures with a question and a box, in the parquet schema of textVQA_groundingtask_bbox."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from subspacelab.files import write_beside

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
    """One picture and what is asked about it."""

    image_bytes: bytes
    """The encoded picture (PNG, JPEG, ...)."""
    image_path: str
    """Its file name."""
    question: str
    """About one thing in the picture."""
    answers: tuple[str, ...]
    """What people answered; one or more."""
    dataset_id: str
    """Names the row."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height in the picture's own pixels."""

    def image(self) -> Image.Image:
        """The picture in RGB; bytes that are none are a ValueError that names the row."""
        try:
            return Image.open(BytesIO(self.image_bytes)).convert("RGB")
        except (UnidentifiedImageError, OSError) as e:
            raise ValueError(f"row {self.dataset_id}: its picture cannot be read ({e}); restore the data set") from e


def write_grounding(path: Path, rows: Iterable[GroundingRow], *, rows_per_group: int = 100) -> int:
    """Writes rows as they come, a row group at a time, and returns their number; equal rows give equal bytes."""
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
    """Rows of a parquet file, or of a folder's parquet files in the order of their names, a few in memory at a time.

    `answer` may be a string or a list of strings; an image without a path and a numeric dataset_id are accepted.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} must be at least 1; leave it out to read every row")
    left = limit
    for file in grounding_files(path):
        with pq.ParquetFile(file) as parquet:
            _check_columns(file, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(batch_rows, columns=list(COLUMNS)):
                for record in batch.to_pylist():
                    yield _row(file, record)
                    left = None if left is None else left - 1
                    if left == 0:
                        return


def grounding_files(path: Path) -> list[Path]:
    """The parquet files that `path` stands for; none, or one that is no parquet, is a ValueError."""
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise ValueError(f"{path}: no parquet file there; pass a .parquet file or a folder that holds some")
    for file in files:
        try:
            pq.read_metadata(file)
        except pa.ArrowInvalid as e:
            raise ValueError(f"{file}: not a parquet file ({str(e).splitlines()[0]}); restore it") from e
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


def _row(file: Path, record: dict[str, Any]) -> GroundingRow:
    name, box, answer = str(record["dataset_id"]), record["bbox"], record["answer"]
    if box is None or len(box) != 4:
        raise ValueError(f"{file}: row {name}: bbox {box} is not [x, y, width, height]; correct or drop the row")
    x, y, width, height = (float(v) for v in box)
    image = record["image"]
    if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
        raise ValueError(f"{file}: row {name}: no bytes in 'image'; put the picture itself there or drop the row")
    return GroundingRow(
        image_bytes=image["bytes"],
        image_path=image.get("path") or "",
        question=record["question"],
        answers=(answer,) if isinstance(answer, str) else tuple(answer),
        dataset_id=name,
        bbox=(x, y, width, height),
    )
