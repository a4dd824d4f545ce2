"""`pipeline:NAME`: checkpoints and data that the pipeline makes; `demo:NAME` is the older name."""

import re
from typing import Any

PIPELINE = "pipeline:"
_OLDER = re.compile(r"(?<!\S)demo:")


def canonical(value: Any) -> Any:
    """A reference under its present name: `pipeline:NAME` for `demo:NAME`, which earlier results hold.

    Also inside a text, a list or a mapping; all other values are returned unchanged.
    """
    if isinstance(value, str):
        return _OLDER.sub(PIPELINE, value)
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    if isinstance(value, dict):
        return {key: canonical(each) for key, each in value.items()}
    return value


def of_pipeline(reference: str) -> bool:
    """Whether a reference names something that the pipeline makes, by the present or the older name."""
    return bool(canonical(reference).startswith(PIPELINE))
