"""Checkpoints of the Hugging Face hub: one commit, one weight format, and a plain word when it is out of reach."""

from dataclasses import dataclass
from pathlib import Path

from subspacelab.checkpoints.index import PREFERENCE, find_weights, read_weight_map
from subspacelab.core.errors import CheckpointError

SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Config, index and tokenizer files, taken from the top folder only."""

TIMEOUT_SECONDS = 10.0
"""Longest silence of the server, in connecting and between two pieces of an answer."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    """The full hash."""
    files: tuple[str, ...]
    """Every path in it."""
    weights: str
    """The weight file or index that is read, by the order of `PREFERENCE`."""


def fetch_from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    """The local folder and commit of `repo` at `revision` (its main branch by default).

    Downloads what is missing; without a network the local cache is used. ValueError, in one line, if
    neither has it: the reference, the reason, and what to do instead.
    """
    try:
        return _download(repo, revision)
    except hub_errors() as e:
        return cached_or_refused(repo, revision, e)


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when it cannot give something."""
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # the hub's client takes 0.5 s to import

    return OSError, HTTPError, EntryNotFoundError, RuntimeError  # RuntimeError: the hub's transfer library


def cached_or_refused(repo: str, revision: str | None, e: Exception) -> tuple[Path, str]:
    """Folder and commit in the local cache, where the whole checkpoint is; else a ValueError that explains `e`."""
    cached = _cached(repo, revision)
    if cached is not None:
        return cached
    asked = f"{repo}@{revision}" if revision else repo
    raise CheckpointError(f"{asked}: no such local folder, and {why_not(e)}") from e


def list_repository(repo: str, revision: str | None) -> Listing:
    """Commit and files of a repository; raises what the hub's client raises, ValueError if it has no weights."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS)
    files = tuple(entry.rfilename for entry in info.siblings or [])
    weights = next((name for name in PREFERENCE if name in files), None)
    if weights is None:
        raise CheckpointError(
            f"{repo}@{info.sha}: no weights in this repository; expected one of {', '.join(PREFERENCE)}"
        )
    return Listing(str(info.sha), files, weights)


def fetch_file(repo: str, commit: str, name: str) -> Path:
    """One file of a commit, in the local cache."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, name, revision=commit, etag_timeout=TIMEOUT_SECONDS))


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    listing = list_repository(repo, revision)
    wanted = [name for name in listing.files if "/" not in name and name.endswith(SMALL_SUFFIXES)]
    if listing.weights.endswith(".json"):
        index = fetch_file(repo, listing.commit, listing.weights)
        wanted += sorted(set(read_weight_map(index).values()))
    else:
        wanted.append(listing.weights)
    # By branch and not by commit, so that the cache knows the branch when there is no network.
    folder = snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_SECONDS)
    return Path(folder), Path(folder).name


def _cached(repo: str, revision: str | None) -> tuple[Path, str] | None:
    """The complete checkpoint in the local cache, if there is one; a cached snapshot is named by its commit."""
    from huggingface_hub import snapshot_download

    try:
        # The cache is asked for the smallest part: which weights belong to it is ours to check.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
        find_weights(folder)
    except (OSError, ValueError):
        return None
    return folder, folder.name


def why_not(e: Exception) -> str:
    """Why the hub did not give it, and the remedy, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(e, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and it is not in the cache; give a local folder, or `hf download` it first"
    if isinstance(e, GatedRepoError):
        return "the repository is gated on the hub; accept its licence there and run `hf auth login`"
    if isinstance(e, RevisionNotFoundError):
        return "the hub's repository has no such revision; give a branch, tag or commit that it has"
    if isinstance(e, RepositoryNotFoundError):
        return "the hub has no such repository, or it is private; check the name, or run `hf auth login`"
    first_line = str(e).partition("\n")[0]
    return (
        f"it could not be fetched from the hub ({type(e).__name__}: {first_line}); give a local folder instead, "
        "or run `hf download` where there is a network"
    )
