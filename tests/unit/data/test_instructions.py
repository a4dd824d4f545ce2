import json
from pathlib import Path

import pytest

from subspacelab.data.instructions import Instruction, prompt_of, read_instructions, write_instructions

ROWS = [Instruction("What is 1 + 1?", "2"), Instruction("Où ?", "là\nbas")]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_instructions(tmp_path / "x.jsonl", ROWS)
    assert read_instructions(str(tmp_path / "x.jsonl")) == ROWS


def test_other_keys_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps({"query": r.query, "response": r.response, "type": "GSM"}) for r in ROWS]
    (tmp_path / "x.jsonl").write_text("\n\n".join(lines) + "\n\n")
    assert read_instructions(str(tmp_path / "x.jsonl")) == ROWS


def test_a_json_list_is_read_as_the_hub_holds_metamath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"query": r.query, "response": r.response, "original_question": "?", "type": "MATH_FOBAR"} for r in ROWS]
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(rows))
    asked = []

    def fetch(repo: str, name: str) -> Path:
        asked.append(repo)
        return tmp_path / name

    monkeypatch.setattr("subspacelab.data.instructions.fetch_data_file", fetch)
    assert read_instructions("meta-math/MetaMathQA") == ROWS
    assert asked == ["meta-math/MetaMathQA"]


def test_the_demo_is_read_from_its_place_or_said_not_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"demo:arithmetic: not made yet .* run `dvc repro corpus`"):
        read_instructions("demo:arithmetic")
    write_instructions(Path("data/corpus/arithmetic-train.jsonl"), ROWS)
    assert read_instructions("demo:arithmetic") == read_instructions("pipeline:arithmetic") == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it holds no row"),
        ('{"query": "a", "response": "b"}\n{"query": "a"}', r"line 2: `query` and `response` must be .* \['query'\]"),
        ('{"query": "a", "response": 3}', "line 1: .* must be there and be text"),
        ('\n{"query": "a", "response": " "}', "line 2: `query` or `response` is empty"),
        ('{"query": "a", "response": "b"}\n{"query": ', "line 2: not valid JSON"),
        ("[1]", "line 1: .* got list"),
        ('{"query": "a \\ud83d", "response": "b"}', "line 1: holds half a surrogate pair"),
        ('{"query": "a", "response": ["b"]}', "line 1: .* must be there and be text"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_instructions(str(tmp_path / "x.jsonl"))
    assert "\n" not in str(caught.value)


def test_what_is_neither_file_nor_name_is_refused_with_the_names(tmp_path: Path) -> None:
    for reference in ("nothing", str(tmp_path), str(tmp_path / "gone.jsonl")):
        with pytest.raises(ValueError, match=r"no such instructions; .*meta-math/MetaMathQA.*pipeline:arithmetic"):
            read_instructions(reference)
    (tmp_path / "x.json").write_text('{"query": "a"}')
    with pytest.raises(ValueError, match="a list of rows was expected, got dict"):
        read_instructions(str(tmp_path / "x.json"))


def test_the_prompt_holds_the_query_and_ends_with_a_line_break() -> None:
    assert prompt_of("Why?") == "Question: Why?\nAnswer:\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_byte_order_mark_is_obeyed(tmp_path: Path, name: str, encoding: str) -> None:
    row = {"query": "Où ?", "response": "là"}
    content = json.dumps([row] if name.endswith(".json") else row, ensure_ascii=False)
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_instructions(str(tmp_path / name)) == [Instruction("Où ?", "là")]
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}: not UTF-8 text"):
        read_instructions(str(tmp_path / name))
