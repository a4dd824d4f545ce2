"""`pipeline:NAME`: what this project's pipeline makes, checkpoints and data; `demo:NAME` is its older name."""

import re
from typing import Any

PIPELINE = "pipeline:"
_OLDER = re.compile(r"(?<!\S)demo:")


def canonical(value: Any) -> Any:
    """A reference by its name of today: `pipeline:NAME` for `demo:NAME`, which earlier results hold.

    The same within a text, a list and a mapping; all else is returned as it is.
    """
    if isinstance(value, str):
        return _OLDER.sub(PIPELINE, value)
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    if isinstance(value, dict):
        return {key: canonical(each) for key, each in value.items()}
    return value


def of_pipeline(reference: str) -> bool:
    """Whether a reference names something that the pipeline makes, by either name."""
    return bool(canonical(reference).startswith(PIPELINE))
