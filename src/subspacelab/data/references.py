"""From what a person writes to pictures on this disk: a path, or a data set `org/name[@revision]` of the hub."""

from pathlib import Path

from subspacelab.checkpoints.references import HUB_REFERENCE
from subspacelab.data.decoding import picture_suffixes
from subspacelab.data.hub_files import fetch_data_folder
from subspacelab.files import expanded


def file_patterns() -> list[str]:
    """What is fetched of a data set: the files that a folder of it is scanned for, in either case."""
    suffixes = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in s) for s in sorted(picture_suffixes()))
    return ["*.parquet", "*.jsonl", *(f"*{suffix}" for suffix in suffixes)]


def resolve_pictures(reference: str) -> Path:
    """A file or folder that is there, else a data set of the hub, downloaded once; a ValueError says what is wrong."""
    path = expanded(reference)
    if path.exists():
        return path
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None or path.suffix in (".parquet", ".jsonl"):
        raise ValueError(
            f"{reference}: no such pictures; give a parquet file, a folder, a .jsonl, or org/name[@revision]"
        )
    return fetch_data_folder(match["repo"], file_patterns(), revision=match["revision"])
