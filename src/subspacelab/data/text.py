"""Documents of plain text: the usual calibration sets, the pipeline's corpus, or the user's own file."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from subspacelab.core.files import expanded
from subspacelab.core.references import canonical
from subspacelab.data.references import fetch_data_file
from subspacelab.data.text_files import (
    MAX_BYTES,
    MAX_UNPACKED,
    ROW,
    json_lines,
    open_text,
    require_characters,
    require_text_file,
    too_much,
)

Split = Literal["train", "test"]

CORPUS = Path("data/corpus")
COLUMNS = ("text", "sentence")
SUFFIXES = (".txt", ".parquet", ".json.gz", ".jsonl.gz", ".jsonl")
HEADING = re.compile(r" = [^=].* = \n?")


class NoSuchPart(ValueError):
    """The text has no documents in the requested split."""


@dataclass(frozen=True)
class HubText:
    """Where the text of a data set is on the hub."""

    repo: str
    """`org/name`."""
    files: dict[Split, str]
    """Split -> file."""
    revision: str | None = None
    """Branch, if it is not the main one."""
    max_documents: int | None = None
    """Number of documents read from the start of a very large file; None reads all."""


HUB = {
    "wikitext2": HubText(
        "Salesforce/wikitext",
        {
            "train": "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "test": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
    ),
    "c4": HubText(
        "allenai/c4",
        {"train": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"},
        max_documents=20_000,  # of 356,000; 256 windows of 2,048 tokens take about 1,200
    ),
    "ptb": HubText(
        "ptb-text-only/ptb_text_only",
        {"train": "penn_treebank/train/0000.parquet", "test": "penn_treebank/test/0000.parquet"},
        revision="refs/convert/parquet",  # the main branch holds a script, which is never run
    ),
}


def read_texts(reference: str, *, split: Split = "train") -> list[str]:
    """The documents of `wikitext2`, `c4`, `ptb`, `pipeline:corpus`, or of a local file or folder.

    A file is `.txt` (a blank line ends a document), `.parquet` (column `text` or `sentence`), or `.jsonl`, `.jsonl.gz`,
    `.json.gz` (rows with `text`). In a folder, files are selected by the split in their names (`test`, or else
    `validation`); if no name contains a split, the last tenth of the text is the test part. Of c4, the first 20,000
    documents of a split are read. ValueError, in one line, says what is missing and the remedy.
    """
    path = expanded(reference)
    if canonical(reference) == "pipeline:corpus":
        path = CORPUS / ("calibration.txt" if split == "train" else "test.txt")
        if not path.is_file():
            raise ValueError(f"{reference}: not made yet ({path}); run `dvc repro corpus`")
        texts = _file_texts(path)
    elif path.exists():
        texts = _local_texts(path, split)
    elif reference in HUB:
        source = HUB[reference]
        file = fetch_data_file(source.repo, source.files[split], revision=source.revision)
        texts = _file_texts(file, source.max_documents)
    else:
        names = ", ".join([*HUB, "pipeline:corpus"])
        raise ValueError(
            f"{reference}: no such text; give {names}, or a {', '.join(SUFFIXES)} file or a folder of them"
        )
    if not texts:
        raise NoSuchPart(f"{reference}: it holds no text ({split}); give one that does")
    return texts


def _local_texts(path: Path, split: Split) -> list[str]:
    """A file, or the split's files in a folder, in the order of their names."""
    if not path.is_dir():
        require_text_file(path)
        return _part(_file_texts(path), split)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
    if not files:
        raise ValueError(f"{path}: no text file in this folder; it must hold some of {', '.join(SUFFIXES)}")
    named = {name: [p for p in files if _says(name, p.relative_to(path))] for name in ("train", "test", "validation")}
    for name in ("train",) if split == "train" else ("test", "validation"):
        if named[name]:
            return [text for p in named[name] for text in _file_texts(p)]
    if any(named.values()):
        there = [p.relative_to(path).as_posix() for p in files[:4]]
        raise NoSuchPart(f"{path}: no file of the {split} split; there are {there}")
    return _part([text for p in files for text in _file_texts(p)], split)


def _says(name: str, path: Path) -> bool:
    """Whether a path names a split: `test` is named by `x-test-0.parquet` and `test/0.parquet`, not by `latest.txt`."""
    return re.search(rf"(?<![a-z]){name}(?![a-z])", path.as_posix().lower()) is not None


def _part(texts: list[str], split: Split) -> list[str]:
    """The first nine tenths of the characters, or the last tenth; the cut may fall inside a document."""
    border, position, part = int(sum(map(len, texts)) * 0.9), 0, []
    for text in texts:
        cut = min(max(border - position, 0), len(text))
        piece = text[:cut] if split == "train" else text[cut:]
        if piece.strip():
            part.append(piece)
        position += len(text)
    return part


def _file_texts(path: Path, limit: int | None = None) -> list[str]:
    """The documents of one file, by its suffix; of a file of JSON lines the first `limit`."""
    name = path.name.lower()
    if name.endswith(".txt"):
        with open_text(path) as file:
            return paragraphs(file.read())
    if name.endswith(".parquet"):
        return _parquet_texts(path)
    if name.endswith(SUFFIXES):
        return list(islice(_json_texts(path), limit))
    raise ValueError(f"{path}: unknown kind of text file; give one of {', '.join(SUFFIXES)}")


def paragraphs(text: str) -> list[str]:
    """The pieces of text between blank lines."""
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def articles(rows: Iterable[str]) -> list[str]:
    """Joins the rows of wikitext, which are lines, into articles; an article begins at a heading ` = Title = `.

    Rows without any heading are already documents.
    """
    rows = list(rows)
    if not any(HEADING.fullmatch(row) for row in rows):
        return [row for row in rows if row.strip()]
    joined: list[list[str]] = [[]]
    for row in rows:
        if HEADING.fullmatch(row):
            joined.append([])
        joined[-1].append(row if row.endswith("\n") else row + "\n")
    return [text for text in map("".join, joined) if text.strip()]


def _parquet_texts(path: Path) -> list[str]:
    """Column `text`: documents, or wikitext's lines. Column `sentence`: PTB's consecutive sentences, one document."""
    import pyarrow as pa

    require_text_file(path)
    try:
        column, rows = _parquet_rows(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        reason = str(e).partition("\n")[0]
        raise ValueError(f"{path}: not a parquet file that can be read ({reason}); restore it") from e
    return articles(rows) if column == "text" else ["\n".join(rows)]


def _parquet_rows(path: Path) -> tuple[str, list[str]]:
    """Name of the text column and its rows; a null row is an empty text."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        column = next((name for name in COLUMNS if name in names), None)
        if column is None:
            raise ValueError(f"{path}: its columns are {names}; one of {list(COLUMNS)} is needed")
        kind = file.schema_arrow.field(names.index(column)).type
        if not _holds_text(kind):
            raise ValueError(f"{path}: column `{column}` holds {kind}, not text; write each row as one string")
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        parts = [group.column(i) for group in groups for i in range(group.num_columns)]
        largest = max((c.total_uncompressed_size for c in parts if c.path_in_schema == column), default=0)
        if largest > MAX_UNPACKED or file.metadata.num_rows * ROW > MAX_UNPACKED:
            raise too_much(path)
        rows: list[str] = []
        left = MAX_UNPACKED
        # No row is longer than its part of the column, but any number may be equal to one that is stored once.
        batch_size = min(1024, MAX_BYTES // max(largest, 1))
        for batch in file.iter_batches(batch_size, columns=[column]):
            found = [row or "" for row in batch.column(0).to_pylist()]
            left -= sum(len(row) + ROW for row in found)
            if left < 0:
                raise too_much(path)
            rows += found
    return column, rows


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    )


def _json_texts(path: Path) -> Iterator[str]:
    """The `text` of each row of JSON lines, compressed or not."""
    for where, row in json_lines(path):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{where}: a row with `text` was expected; got {repr(row)[:60]}")
        yield require_characters(text, where)
