"""The tokens of a tokenizer.json by their ids, read as JSON: no tokenizer is built."""

from pathlib import Path
from typing import Any

from subspacelab.files import read_json

TOKENIZER_NAME = "tokenizer.json"


def read_vocabulary(path: Path) -> dict[int, str]:
    """Id -> token as the tokenizer stores it, added tokens included; ValueError if the file is none.

    The vocabulary of BPE, WordPiece and WordLevel is a mapping token -> id, that of Unigram a list in the order of ids.
    """
    content = read_json(path)
    try:
        stored = content["model"]["vocab"]
        added = content.get("added_tokens") or []
        tokens = _by_id(stored)
        return tokens | {int(entry["id"]): str(entry["content"]) for entry in added}
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
        raise ValueError(f"{path}: not a tokenizer.json ({type(e).__name__}: {e}); restore or remove it") from e


def _by_id(stored: Any) -> dict[int, str]:
    if isinstance(stored, dict):
        return {int(i): str(token) for token, i in stored.items()}
    return {i: str(entry[0]) for i, entry in enumerate(stored)}


def num_padding(vocabulary: dict[int, str], first_id: int, num_rows: int) -> int:
    """Rows at the end of a table, ids first_id ... first_id + num_rows - 1, that no token of the vocabulary has."""
    last = max((i for i in vocabulary if i < first_id + num_rows), default=-1)
    return min(num_rows, first_id + num_rows - 1 - last)
