"""Checkpoints of the Hugging Face hub: one commit, one weight format, and a plain word when it is out of reach."""

from pathlib import Path

from subspacelab.checkpoints.index import PREFERENCE, find_weights, read_weight_map

SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Config, index and tokenizer files, taken from the top folder only."""

TIMEOUT_SECONDS = 10.0


def fetch_from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    """The local folder and commit of `repo` at `revision` (its main branch by default).

    Downloads what is missing; without a network the local cache is used. ValueError, in one line, if
    neither has it: the reference, the reason, and what to do instead.
    """
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # the hub's client takes 0.5 s to import

    try:
        return _download(repo, revision)
    except (OSError, HTTPError, EntryNotFoundError, RuntimeError) as e:  # RuntimeError: the hub's transfer library
        cached = _cached(repo, revision)
        if cached is not None:
            return cached
        asked = f"{repo}@{revision}" if revision else repo
        raise ValueError(f"{asked}: no such local folder, and {why_not(e)}") from e


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_SECONDS)
    files = [entry.rfilename for entry in info.siblings or []]
    weights = next((name for name in PREFERENCE if name in files), None)
    if weights is None:
        raise ValueError(f"{repo}@{info.sha}: no weights in this repository; expected one of {', '.join(PREFERENCE)}")
    wanted = [name for name in files if "/" not in name and name.endswith(SMALL_SUFFIXES)]
    if weights.endswith(".json"):
        index = hf_hub_download(repo, weights, revision=info.sha, etag_timeout=TIMEOUT_SECONDS)
        wanted += sorted(set(read_weight_map(Path(index)).values()))
    else:
        wanted.append(weights)
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
