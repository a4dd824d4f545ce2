"""One file of a data set on the hub, downloaded once."""

from pathlib import Path

from subspacelab.checkpoints.hub import TIMEOUT_SECONDS, why_not


def fetch_data_file(repo: str, name: str, *, revision: str | None = None) -> Path:
    """The local path of file `name` of data set `repo`; without a network, of the local cache's copy.

    ValueError, in one line, if neither has it: what was asked for, the reason, and what to do instead.
    """
    from huggingface_hub import hf_hub_download  # the hub's client takes 0.5 s to import
    from huggingface_hub.errors import HTTPError

    try:
        path = hf_hub_download(repo, name, repo_type="dataset", revision=revision, etag_timeout=TIMEOUT_SECONDS)
    except (OSError, HTTPError, RuntimeError) as e:  # RuntimeError: the hub's transfer library
        raise ValueError(f"{repo}: no local copy of {name}, and {why_not(e)}") from e
    return Path(path)
