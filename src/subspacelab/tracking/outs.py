"""The md5 that DVC writes into dvc.lock, computed without DVC: it links a run to what it made, across renames."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path


def md5_file(path: Path) -> str:
    """The MD5 of a file's bytes, in hexadecimal; DVC's hash of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def md5_folder(folder: Path) -> str:
    """DVC's hash of a folder: the MD5 of its sorted listing as JSON, with `.dir` behind it.

    What a `.dvcignore` leaves out is not left out here; an output holds nothing of that kind.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    listing = [{"md5": md5_file(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def out_tags(outs: Sequence[Path]) -> dict[str, str]:
    """Tags `dvc.out.<path>` with the md5 of each output that exists; search runs by the md5 in a dvc.lock."""
    tags = {}
    for out in outs:
        if out.exists():
            tags[f"dvc.out.{out.as_posix()}"] = md5_folder(out) if out.is_dir() else md5_file(out)
    return tags
