"""Train, validation and test: by picture, so that no picture is in two of them."""

import hashlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "validation", "test"]
SHARE = 10  # one tenth each for validation and test


def split_rows(digests: Sequence[str], seed: int) -> dict[Split, list[int]]:
    """Rows of each split, 80/10/10 of the distinct pictures (at least one each), in the order of the rows.

    `digests` name the pictures; equal ones go together. The order of the draw is that of SHA-256(seed, digest), so it
    does not depend on the order or the number of copies.
    """
    pictures = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
    if len(pictures) < 3:
        raise ValueError(f"{len(pictures)} distinct pictures cannot be split in three; cache at least 3")
    tenth = max(1, round(len(pictures) / SHARE))
    test, validation = set(pictures[:tenth]), set(pictures[tenth : 2 * tenth])
    rows: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    for row, digest in enumerate(digests):
        rows["test" if digest in test else "validation" if digest in validation else "train"].append(row)
    return rows
