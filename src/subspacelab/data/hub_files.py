"""One file of a data set on the hub, downloaded once."""

from pathlib import Path

from subspacelab.checkpoints.hub import TIMEOUT_SECONDS, why_not


def fetch_data_file(repo: str, name: str, *, revision: str | None = None) -> Path:
    """The local path of file `name` of data set `repo`; without a network, of the local cache's copy.

    ValueError, in one line, if neither has it: what was asked for, the reason, and what to do instead.
    """
    from huggingface_hub import HfApi, hf_hub_download  # the hub's client takes 0.5 s to import
    from huggingface_hub.errors import HTTPError

    def from_hub(cached: bool) -> Path:
        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_files_only=cached))

    try:
        # Asked first, since a download tries an unreachable hub for half a minute.
        HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_SECONDS, expand=["sha"])
        return from_hub(cached=False)
    except (OSError, HTTPError, RuntimeError) as e:  # RuntimeError: the hub's transfer library
        try:
            return from_hub(cached=True)
        except OSError:
            raise ValueError(f"{repo}: no local copy of {name}, and {why_not(e)}") from e
