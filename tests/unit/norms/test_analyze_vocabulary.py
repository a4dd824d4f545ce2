import json
from pathlib import Path

import pytest
from tests.unit.checkpoints.refusal import refusal

from subspacelab.norms.analysis import read_vocabulary
from subspacelab.norms.measured import num_padding


def write(path: Path, vocab: object, added: list | None = None) -> Path:
    path.write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added or []}))
    return path


@pytest.mark.parametrize("vocab", [{"a": 0, "Ġb": 1}, [["a", -1.0], ["Ġb", -2.5]]])
def test_both_shapes_of_vocabulary_with_added_tokens(tmp_path: Path, vocab: object) -> None:
    path = write(tmp_path / "tokenizer.json", vocab, [{"id": 5, "content": "<image>", "special": True}])
    assert read_vocabulary(path) == {0: "a", 1: "Ġb", 5: "<image>"}


def test_it_reads_what_the_tokenizers_library_writes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path / "tokenizer.json") == {0: "a", 1: "b", 2: "ab", 3: "<pad>"}


@pytest.mark.parametrize("content", ["{}", "[1]", '{"model": {"vocab": {"a": "x"}}}', '{"model": {"vocab": 3}}', "no"])
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    assert "tokenizer.json" in refusal(read_vocabulary, path)


def test_padding_is_what_follows_the_last_token() -> None:
    vocabulary = {0: "a", 1: "b", 5: "c", 9: "d"}
    assert num_padding(vocabulary, 0, 10) == 0
    assert num_padding(vocabulary, 0, 12) == 2
    assert num_padding(vocabulary, 0, 9) == 3  # id 9 lies in another table
    assert num_padding(vocabulary, 9, 4) == 3
    assert num_padding(vocabulary, 20, 4) == 4
    assert num_padding({}, 0, 4) == 4
