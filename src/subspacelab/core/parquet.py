"""Whether a parquet file can be read without filling the memory."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MAX_EXPANSION = 1000
"""Largest ratio of a column's unpacked size to its bytes in the file, and most values per row of a column of lists.
Pictures compress two to a hundred times; a file that unpacks far beyond that is not a data set."""
SMALL_BYTES = 1 << 26
"""Unpacked size that is always allowed, however few bytes the column has in the file."""


def require_bounded(file: Path, columns: Sequence[str]) -> int:
    """Number of rows of a parquet file; ValueError if it is not one, or if `columns` unpack to too much."""
    try:
        found = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{file}: not a parquet file ({str(e).splitlines()[0]}); restore it") from e
    size, rows = file.stat().st_size, int(found.num_rows)
    for group in (found.row_group(i) for i in range(found.num_row_groups)):
        for column in (group.column(i) for i in range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] not in columns:
                continue
            unpacked, values = column.total_uncompressed_size, column.num_values
            too_large = unpacked > max(SMALL_BYTES, MAX_EXPANSION * column.total_compressed_size)
            if too_large or values > MAX_EXPANSION * group.num_rows or rows > size:
                raise ValueError(
                    f"{file}: {column.path_in_schema!r} unpacks to {values} values and {unpacked} bytes in {rows} rows,"
                    f" from a file of {size} bytes; it is damaged, or made to fill the memory: restore it"
                )
    return rows
