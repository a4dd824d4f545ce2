"""From what a person writes to pictures on this disk: a path, or a data set `org/name[@revision]` of the hub."""

from pathlib import Path

from subspacelab.checkpoints.hub import TIMEOUT_SECONDS, why_not
from subspacelab.checkpoints.references import HUB_REFERENCE

PATTERNS = ["*.parquet", "*.jsonl", "*.png", "*.jpg", "*.jpeg", "*.webp"]


def resolve_pictures(reference: str) -> Path:
    """A file or folder that is there, else a data set of the hub, downloaded once; a ValueError says what is wrong."""
    path = Path(reference).expanduser()
    if path.exists():
        return path
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None or path.suffix in (".parquet", ".jsonl"):
        raise ValueError(
            f"{reference}: no such pictures; give a parquet file, a folder, a .jsonl, or org/name[@revision]"
        )
    from huggingface_hub import snapshot_download  # the hub's client takes 0.5 s to import
    from huggingface_hub.errors import HTTPError

    try:
        folder = snapshot_download(
            match["repo"],
            repo_type="dataset",
            revision=match["revision"],
            allow_patterns=PATTERNS,
            etag_timeout=TIMEOUT_SECONDS,
        )
    except (OSError, HTTPError, RuntimeError) as e:  # RuntimeError: the hub's transfer library
        raise ValueError(f"{reference}: no such local path, and {why_not(e)}") from e
    return Path(folder)
