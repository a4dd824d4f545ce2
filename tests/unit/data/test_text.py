import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from subspacelab.data.text import articles, paragraphs, read_texts

WIKITEXT = [
    "",
    " = First = \n",
    "",
    " Some text . \n",
    " = = Part = = \n",
    " More . \n",
    " = Second = \n",
    " Other . \n",
]
ARTICLES = [" = First = \n\n Some text . \n = = Part = = \n More . \n", " = Second = \n Other . \n"]


def _parquet(path: Path, column: str, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows}), path)
    return path


def _json_lines(path: Path, texts: list[str]) -> Path:
    lines = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def test_a_blank_line_ends_a_document_and_spaces_do_not_fill_it() -> None:
    assert paragraphs("one\ntwo\n\n\n three\n \t\nfour\n") == ["one\ntwo", " three", "four"]
    assert paragraphs("\n\n") == []


def test_wikitext_lines_become_articles_at_their_headings_only() -> None:
    assert articles(WIKITEXT) == ARTICLES
    assert articles(["A document.", "", "Another."]) == ["A document.", "Another."]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json.gz"])
def test_json_lines_are_documents_and_the_last_tenth_is_the_test_part(tmp_path: Path, name: str) -> None:
    path = _json_lines(tmp_path / name, [f"document {i:02d}" for i in range(20)])
    assert read_texts(str(path)) == [f"document {i:02d}" for i in range(18)]
    assert read_texts(str(path), split="test") == ["document 18", "document 19"]


def test_one_long_document_is_cut_between_the_splits(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("abcdefghij" * 10)
    train, test = read_texts(str(tmp_path / "x.txt")), read_texts(str(tmp_path / "x.txt"), split="test")
    assert [len(train[0]), len(test[0])] == [90, 10]
    assert train[0] + test[0] == "abcdefghij" * 10


def test_a_local_copy_of_a_data_set_is_read_by_its_splits(tmp_path: Path) -> None:
    _parquet(tmp_path / "wikitext-2-raw-v1" / "train-00000-of-00001.parquet", "text", WIKITEXT)
    _parquet(tmp_path / "wikitext-2-raw-v1" / "validation-00000-of-00001.parquet", "text", [" = V = \n"])
    assert read_texts(str(tmp_path)) == ARTICLES
    assert read_texts(str(tmp_path), split="test") == [" = V = \n"], "no test file: the validation's"
    _parquet(tmp_path / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet", "text", [" = T = \n"])
    assert read_texts(str(tmp_path), split="test") == [" = T = \n"]


def test_sentences_of_ptb_are_one_text(tmp_path: Path) -> None:
    _parquet(tmp_path / "train" / "0000.parquet", "sentence", ["no it was n't", "mr. <unk> said"])
    assert read_texts(str(tmp_path)) == ["no it was n't\nmr. <unk> said"]


def test_the_demo_is_read_from_its_place_or_said_not_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"demo:corpus: not made yet \(data/corpus/test.txt\); run `dvc repro corpus`"):
        read_texts("demo:corpus", split="test")
    Path("data/corpus").mkdir(parents=True)
    Path("data/corpus/calibration.txt").write_text("a\n\nb\n")
    assert read_texts("demo:corpus") == read_texts("pipeline:corpus") == ["a", "b"]


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("wikitext2", "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
        ("ptb", "penn_treebank/test/0000.parquet"),
        ("c4", "en/c4-validation.00000-of-00008.json.gz"),
    ],
)
def test_each_name_asks_the_hub_for_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetch(repo: str, name: str, revision: str | None) -> Path:
        asked.append((repo, name, revision))
        path = tmp_path / name
        return _json_lines(path, ["x"]) if name.endswith(".gz") else _parquet(path, "text", ["x"])

    monkeypatch.setattr("subspacelab.data.text.fetch_data_file", fetch)
    assert read_texts(reference, split="test") == ["x"]
    assert [given[1] for given in asked] == [name]


def test_of_c4_the_first_documents_are_read_and_of_ones_own_file_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _json_lines(tmp_path / "shard-train.json.gz", [str(i) for i in range(20_005)])
    monkeypatch.setattr("subspacelab.data.text.fetch_data_file", lambda *_, **__: path)
    assert read_texts("c4") == [str(i) for i in range(20_000)]
    assert len(read_texts(str(tmp_path))) == 20_005


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text file in this folder"):
        read_texts(str(tmp_path))


def test_bad_input_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"content": "b"}\n')
    (tmp_path / "bad.json.gz").write_bytes(gzip.compress(b'{"text": "a"}\n')[:-9])
    (tmp_path / "latin.txt").write_bytes("où".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "x.docx").write_text("text")
    _parquet(tmp_path / "other.parquet", "content", ["a"])
    for name, message in {
        "bad.parquet": "not a parquet file that can be read",
        "bad.jsonl": "line 2: a row with `text` was expected",
        "bad.json.gz": "broken",
        "latin.txt": "not UTF-8 text",
        "empty.txt": "it holds no text",
        "x.docx": "unknown kind of text file",
        "other.parquet": r"its columns are \['content'\]",
        "gone.txt": "no such text; give wikitext2, c4, ptb, pipeline:corpus",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            read_texts(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_split_is_a_whole_word_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "latest.txt").write_text("a" * 9 + "b")
    assert read_texts(str(tmp_path)) == ["a" * 9]
    assert read_texts(str(tmp_path), split="test") == ["b"]


def test_a_folder_without_the_split_asked_for_says_what_there_is(tmp_path: Path) -> None:
    _parquet(tmp_path / "train.parquet", "text", ["a"])
    with pytest.raises(ValueError, match=r"no file of the test split; there are \['train.parquet'\]"):
        read_texts(str(tmp_path), split="test")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json.gz", "X.TXT"])
def test_a_byte_order_mark_is_obeyed_and_is_no_text(tmp_path: Path, name: str, encoding: str) -> None:
    text = "où 深" * 3
    content = (text if name.lower().endswith("txt") else json.dumps({"text": text}) + "\n").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert "".join(read_texts(str(tmp_path / name)) + read_texts(str(tmp_path / name), split="test")) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_wide_characters_without_a_mark_are_no_utf_8(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_text("a red fox", encoding=encoding)
    with pytest.raises(ValueError, match=r"x\.txt: not UTF-8 text \(zero bytes"):
        read_texts(str(tmp_path / "x.txt"))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a b", None, "c d"]),
        pa.array(["a b", "", "c d"], pa.large_string()),
        pa.array(["a b", "", "c d"], pa.string_view()),
        pa.array(["a b", None, "c d"]).dictionary_encode(),
    ],
)
def test_columns_that_hold_text_are_read_however_they_hold_it(tmp_path: Path, column: pa.Array, split: str) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "text": column}), tmp_path / f"{split}.parquet")
    assert read_texts(str(tmp_path), split=split) == ["a b", "c d"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1, 2]), "holds int64, not text"),
        (pa.array([["a"], ["b", "c"]]), "list<.*>, not text"),
        (pa.array([b"a", b"\xff"]), "holds binary, not text"),
        (pa.array([{"a": "b"}]), "struct<.*>, not text"),
        (pa.array([None, None]), "it holds no text"),
        (
            pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")),
            "can be read",
        ),
    ],
)
def test_columns_of_another_type_are_refused_with_file_and_column(tmp_path: Path, column: pa.Array, said: str) -> None:
    for name in ("text", "sentence"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({name: column}), path)
        with pytest.raises(ValueError, match=said) as caught:
            read_texts(str(path))
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row", ['{"text": null}', '{"text": ["a"]}', '{"text": 3}', '"a"', '{"text": "a \\ud83d b"}', "1" * 5000]
)
def test_rows_of_another_type_are_refused_with_file_and_row(tmp_path: Path, row: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + row)
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: ") as caught:
        read_texts(str(tmp_path / "x.jsonl"))
    assert str(caught.value).isascii()
    assert "\n" not in str(caught.value)


def test_pipes_devices_and_what_unpacks_to_too_much_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(ValueError, match=f"{name}: not a regular file"):
            read_texts(str(tmp_path / name))
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(1 << 34)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 1_000_000))
    pq.write_table(pa.table({"text": ["a" * 1000] * 2000}), tmp_path / "bomb.parquet")
    pq.write_table(pa.table({"text": [""] * 20_000}), tmp_path / "rows.parquet")
    for place in ("text", "text_files"):
        monkeypatch.setattr(f"subspacelab.data.{place}.MAX_UNPACKED", 1_000_000)
    for name in ("sparse.txt", "bomb.jsonl.gz", "bomb.parquet", "rows.parquet"):
        with pytest.raises(ValueError, match=f"{name}: holds more text than is read from one file"):
            read_texts(str(tmp_path / name))


@pytest.mark.parametrize("seed", range(12))
def test_damage_of_packed_files_is_named(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "x.jsonl.gz"
    _json_lines(path, [f"document {i}" for i in range(50)])
    content = bytearray(path.read_bytes())
    content[draw.randrange(10, len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.jsonl.gz") as caught:
        read_texts(str(path))
    assert "\n" not in str(caught.value)
