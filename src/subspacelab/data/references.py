"""From a name to files on this disk: a path, or a data set `org/name[@revision]` on the hub."""

from collections.abc import Callable, Sequence
from pathlib import Path

from subspacelab.checkpoints.hub import TIMEOUT_SECONDS, hub_errors, why_not
from subspacelab.checkpoints.references import HUB_REFERENCE
from subspacelab.core.files import expanded
from subspacelab.data.decoding import picture_suffixes


def fetch_data_file(repo: str, name: str, *, revision: str | None = None) -> Path:
    """The local path of file `name` of data set `repo`.

    ValueError, in one line, if neither the hub nor the cache has it: the reference, the reason and the remedy.
    """
    from huggingface_hub import hf_hub_download  # the hub's client takes 0.5 s to import

    def download(cached: bool) -> str:
        return hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_files_only=cached)

    return _fetch(repo, revision, download, missing=f"no local copy of {name}")


def fetch_data_folder(repo: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The local folder of data set `repo` with its files that match one of `patterns` (`*.parquet`).

    ValueError, in one line, as `fetch_data_file`.
    """
    from huggingface_hub import snapshot_download  # the hub's client takes 0.5 s to import

    def download(cached: bool) -> str:
        return snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns), local_files_only=cached
        )

    return _fetch(repo, revision, download, missing="no such local path")


def _fetch(repo: str, revision: str | None, download: Callable[[bool], str], *, missing: str) -> Path:
    """The result of `download(cached)`, from the hub or else from the cache; ValueError if neither has it."""
    from huggingface_hub import HfApi  # the hub's client takes 0.5 s to import

    try:
        # Asked first, since a download tries an unreachable hub for half a minute.
        HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_SECONDS, expand=["sha"])
        return Path(download(False))
    except hub_errors() as e:
        try:
            return Path(download(True))
        except OSError:
            asked = f"{repo}@{revision}" if revision else repo
            raise ValueError(f"{asked}: {missing}, and {why_not(e)}") from e


def file_patterns() -> list[str]:
    """File patterns to fetch from a data set, in either case: the types that a local folder is scanned for."""
    suffixes = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in s) for s in sorted(picture_suffixes()))
    return ["*.parquet", "*.jsonl", *(f"*{suffix}" for suffix in suffixes)]


def resolve_pictures(reference: str) -> Path:
    """A local file or folder, or else a data set on the hub, downloaded once; ValueError if there is neither."""
    path = expanded(reference)
    if path.exists():
        return path
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None or path.suffix in (".parquet", ".jsonl"):
        raise ValueError(
            f"{reference}: no such pictures; give a parquet file, a folder, a .jsonl, or org/name[@revision]"
        )
    return fetch_data_folder(match["repo"], file_patterns(), revision=match["revision"])
