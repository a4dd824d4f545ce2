"""The names of factor files: that of the weight wherever a file can be called so, else one with a digest of it."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

MAX_LENGTH = 200
"""Characters of a weight's name within a file name: most systems take 255 bytes, the partial file's name 54 more."""
PLAIN = re.compile(rf"(?!\.)[ -.0-\[\]-~]{{1,{MAX_LENGTH}}}")
"""Printable ASCII without separators, not hidden: the same name on every system, in every locale."""


def file_names(weights: Iterable[str]) -> dict[str, str]:
    """A file name for each weight of one checkpoint; two that differ in case alone get a digest each."""
    names = list(weights)
    spellings = Counter(name.lower() for name in names)
    return {
        name: plain_file_name(name)
        if PLAIN.fullmatch(name) and spellings[name.lower()] == 1
        else hashed_file_name(name)
        for name in names
    }


def plain_file_name(weight: str) -> str:
    """`<weight>.safetensors`, or a name with a digest if that cannot be a file."""
    return f"{weight}.safetensors" if PLAIN.fullmatch(weight) else hashed_file_name(weight)


def hashed_file_name(weight: str) -> str:
    """What can be read of the name, and a digest that tells it from all others; the record knows the name itself."""
    readable = re.sub(r"[^\w.\[\]-]", "_", weight, flags=re.ASCII).lstrip(".")[: MAX_LENGTH // 2]
    return f"{readable}-{hashlib.sha256(weight.encode()).hexdigest()[:16]}.safetensors"
