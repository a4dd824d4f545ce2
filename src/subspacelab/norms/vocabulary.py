"""The tokens of a tokenizer.json by their ids, read as JSON: no tokenizer is built."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from subspacelab.checkpoints.validation import read_checked

TOKENIZER_NAME = "tokenizer.json"
Id = Annotated[int, Field(ge=0)]


class _Vocabulary(BaseModel):
    vocab: dict[str, Id] | list[tuple[str, float]]


class _AddedToken(BaseModel):
    id: Id
    content: str


class _Tokenizer(BaseModel):
    """What is used of a tokenizer.json."""

    model: _Vocabulary
    added_tokens: list[_AddedToken] | None = None


TOKENIZER = TypeAdapter(_Tokenizer)


def read_vocabulary(path: Path) -> dict[int, str]:
    """Id -> token as the tokenizer stores it, added tokens included; ValueError if the file is none.

    The vocabulary of BPE, WordPiece and WordLevel is a mapping token -> id, that of Unigram a list in the order of ids.
    """
    content = read_checked(path, TOKENIZER, "a tokenizer.json")
    stored = content.model.vocab
    tokens = {i: t for t, i in stored.items()} if isinstance(stored, dict) else {i: e[0] for i, e in enumerate(stored)}
    return tokens | {entry.id: entry.content for entry in content.added_tokens or ()}


def num_padding(vocabulary: dict[int, str], first_id: int, num_rows: int) -> int:
    """Rows at the end of a table, ids first_id ... first_id + num_rows - 1, that no token of the vocabulary has."""
    last = max((i for i in vocabulary if i < first_id + num_rows), default=-1)
    return min(num_rows, first_id + num_rows - 1 - last)
