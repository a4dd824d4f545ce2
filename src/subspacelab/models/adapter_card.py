"""README.md of an adapter's folder: signed where this project wrote it, so that a card somebody edits is kept."""

import hashlib
import re
from pathlib import Path

from subspacelab.core.files import write_beside

CARD = "README.md"
_SIGNATURE = re.compile(
    rb"<!-- subspacelab wrote this card and renews it, unless you edit it \(sha256 ([0-9a-f]{64})\) -->\n"
)


def signed(text: str) -> bytes:
    """The card with a last line, invisible where Markdown is shown, by which `is_own` knows it."""
    body = text.rstrip("\n").encode() + b"\n\n"
    digest = hashlib.sha256(body).hexdigest()
    return body + f"<!-- subspacelab wrote this card and renews it, unless you edit it (sha256 {digest}) -->\n".encode()


def is_own(card: bytes) -> bool:
    """Whether every byte of the card is as `signed` made it: neither a person nor PEFT has changed it since."""
    found = list(_SIGNATURE.finditer(card))
    if not found or found[-1].end() != len(card):
        return False
    return hashlib.sha256(card[: found[-1].start()]).hexdigest() == found[-1][1].decode()


def edited_card(folder: Path) -> bytes | None:
    """The card in `folder` if somebody has edited or put it there; None without one, and for one of ours.

    ValueError for what is no file.
    """
    path = folder / CARD
    if path.is_dir():
        raise ValueError(f"{path}: a folder, and the adapter's card would go there; move it away")
    if not path.is_file():
        return None
    card = path.read_bytes()
    return None if is_own(card) else card


def write_card(folder: Path, text: str) -> bool:
    """Writes the card of the adapter in `folder`, unless one that somebody edited is there; says whether it did."""
    if edited_card(folder) is not None:
        return False
    with write_beside(folder / CARD) as partial:
        partial.write_bytes(signed(text))
    return True
