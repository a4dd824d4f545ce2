"""The result files of a project: read if they exist, checked, and recorded with their MD5."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from subspacelab.core.files import read_json, require_regular
from subspacelab.tracking.dvc_files import md5_file

T = TypeVar("T")
AGAIN = "make it again by `dvc repro --force --single-item STAGE`, or leave its study out"


class Results:
    """The files of one project for a report; a missing file is None, a malformed one a ValueError of one line."""

    def __init__(self, root: Path | str = ".") -> None:
        self.root = Path(root)
        self.md5: dict[str, str] = {}
        """Path -> MD5 of each file that was read: DVC's hash, by which dvc.lock and the tracked run name the file."""

    def json(self, path: str, kind: type[T]) -> T | None:
        """A JSON file as `kind`, such as dict[str, float]."""
        if not self._remember(path):
            return None
        try:
            return TypeAdapter(kind).validate_python(_as_text(read_json(self.root / path)))
        except ValidationError as e:
            problem = e.errors()[0]
            at = ".".join(map(str, problem["loc"])) or "its top level"
            raise ValueError(f"{path}: not what the pipeline writes ({at}: {problem['msg']}); {AGAIN}") from e

    def metrics(self, folder: str) -> dict[str, float]:
        """The headline numbers of a study, from metrics.json, without null values; empty if there is no such file."""
        found = self.json(f"{folder}/metrics.json", dict[str, float | None]) or {}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def table(self, path: str, *, text: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame | None:
        """A CSV file; ValueError unless it has the columns `text`, all filled, and `numbers`, of numbers or empty."""
        if not self._remember(path):
            return None
        try:
            content = io.BytesIO((self.root / path).read_bytes())
            table = pd.read_csv(content, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
            missing = [name for name in (*text, *numbers) if name not in table]
            if missing:
                raise ValueError(f"no column {missing[0]!r}")
            empty = [name for name in text if table[name].isna().any()]
            if empty:
                raise ValueError(f"an empty cell in column {empty[0]!r}")
            return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
        except (ValueError, TypeError) as e:  # those of pandas and of decoding are ValueErrors
            raise ValueError(f"{path}: not a table of the pipeline ({str(e).splitlines()[0]}); {AGAIN}") from e

    def find(self, pattern: str) -> list[str]:
        """The files that match a glob pattern, sorted."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file())

    def _remember(self, path: str) -> bool:
        place = self.root / path
        require_regular(place)
        if place.is_file():
            self.md5[path] = md5_file(place)
        return place.is_file()


def _as_text(value: Any) -> Any:
    """A JSON value with a question mark for half a surrogate pair, which tokens may hold but a page cannot."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace"))


def columns_of(table: pd.DataFrame) -> list[str]:
    """The names of a table's columns."""
    return [str(name) for name in table.columns]
