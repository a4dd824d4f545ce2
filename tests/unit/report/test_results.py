"""Result files: missing ones are None, malformed ones one line, and each is remembered by its MD5."""

import hashlib
from pathlib import Path

import pytest

from subspacelab.report.results import Results


def test_a_missing_file_is_none_and_not_remembered(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.json("a.json", dict[str, float]) is None
    assert results.table("a.csv") is None
    assert results.md5 == {}


def test_what_was_read_is_remembered_by_its_md5(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1.5}')
    results = Results(tmp_path)
    assert results.json("a.json", dict[str, float]) == {"a": 1.5}
    assert results.md5 == {"a.json": hashlib.md5(b'{"a": 1.5}').hexdigest()}


def test_names_stay_text_and_empty_cells_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x\n00012,1\nNA,\n")
    table = Results(tmp_path).table("a.csv", text=("id",), numbers=("x",))
    assert table is not None
    assert table["id"].tolist() == ["00012", "NA"]
    assert table["x"].isna().tolist() == [False, True]


def test_half_a_surrogate_pair_of_a_token_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "\\ud83d", "b": "\\u00e9"}')
    assert Results(tmp_path).json("a.json", dict[str, str]) == {"a": "?", "b": "é"}


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"a": "many"}', '{"a": null}', "{", "\x00\xff", '{"a": {"b": 1}}', "NaN"]
)
def test_a_malformed_json_is_one_line_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json") as e:
        Results(tmp_path).json("a.json", dict[str, float])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"id,x\n1,many\n", b"id,x\n1,2,3\n4,5,6,7\n", b'id,x\n"1', b"\xff\xfe,x\n", b"id,x\n,1\n"],
)
def test_a_malformed_table_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.csv") as e:
        Results(tmp_path).table("a.csv", text=("id",), numbers=("x",))
    assert "\n" not in str(e.value)
