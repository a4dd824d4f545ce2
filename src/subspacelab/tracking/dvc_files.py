"""Files as DVC counts and hashes them: inputs guarded while a stage runs, outs tagged with their MD5."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from subspacelab.core.files import sha256_file

IGNORED = Path(".dvcignore")


class InputGuard:
    """Remembers the contents of files and folders, and raises if they have changed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._before = _digests(self._paths)

    def check(self) -> None:
        """ValueError, naming each file that was changed, added or removed since the guard was made."""
        now = _digests(self._paths)
        changed = sorted(
            str(path) for path in self._before.keys() | now.keys() if self._before.get(path) != now.get(path)
        )
        if changed:
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise ValueError(
                f"{shown}: changed while the stage ran, so DVC would file its result under the wrong inputs;"
                " run it again"
            )


def _digests(paths: Sequence[Path]) -> dict[Path, str]:
    return {file: sha256_file(file) for path in paths for file in dependency_files(path)}


def dependency_files(path: Path) -> list[Path]:
    """The files of a dependency, sorted, as DVC counts them: for a folder, without those excluded by .dvcignore."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    import pathspec

    lines = IGNORED.read_text(encoding="utf-8").splitlines() if IGNORED.is_file() else []
    ignored = pathspec.GitIgnoreSpec.from_lines([*lines, "__pycache__/", "*.pyc"])
    return sorted(file for file in path.rglob("*") if file.is_file() and not ignored.match_file(file))


def md5_file(path: Path) -> str:
    """The MD5 of a file's bytes, in hexadecimal; DVC's hash of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def md5_folder(folder: Path) -> str:
    """DVC's hash of a folder: the MD5 of its sorted listing as JSON, with the suffix `.dir`.

    .dvcignore is not applied here, since an output holds no ignored files.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    listing = [{"md5": md5_file(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def out_tags(outs: Sequence[Path]) -> dict[str, str]:
    """Tags `dvc.out.<path>` with the MD5 of each existing output, by which runs are found from a dvc.lock."""
    tags = {}
    for out in outs:
        if out.exists():
            tags[f"dvc.out.{out.as_posix()}"] = md5_folder(out) if out.is_dir() else md5_file(out)
    return tags
