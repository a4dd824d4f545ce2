"""Questions with answers, for fine-tuning and for evaluation, and the prompt around a question."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subspacelab.core.files import expanded, write_beside
from subspacelab.core.references import canonical
from subspacelab.data.references import fetch_data_file
from subspacelab.data.text_files import json_lines, json_list, require_characters

CORPUS = {
    "pipeline:arithmetic": Path("data/corpus/arithmetic-train.jsonl"),
    "pipeline:arithmetic-validation": Path("data/corpus/arithmetic-validation.jsonl"),
    "pipeline:arithmetic-test": Path("data/corpus/arithmetic-test.jsonl"),
    "pipeline:facts": Path("data/corpus/facts.jsonl"),
}
HUB = {"meta-math/MetaMathQA": "MetaMathQA-395K.json"}


@dataclass(frozen=True)
class Instruction:
    """A question and its answer."""

    query: str
    """The question, without a prompt around it."""
    response: str
    """The whole answer."""


def prompt_of(query: str) -> str:
    """The text that a response follows directly; the response ends with the end-of-sequence token.

    It ends with a line break, at which every tokenizer splits, so that prompt and response can be encoded separately.
    """
    return f"Question: {query}\nAnswer:\n"


def read_instructions(reference: str) -> list[Instruction]:
    """Reads `FILE.jsonl` or `FILE.json` (rows `{query, response}`), `meta-math/MetaMathQA`, or `pipeline:arithmetic`.

    Also `pipeline:arithmetic-validation`, `pipeline:arithmetic-test` and `pipeline:facts`. Other keys of a row are
    ignored. ValueError, in one line, names a missing or empty file, or the number of a bad row.
    """
    path = expanded(reference)
    if canonical(reference) in CORPUS:
        path = CORPUS[canonical(reference)]
        if not path.is_file():
            raise ValueError(f"{reference}: not made yet ({path}); run `dvc repro corpus`")
    elif reference in HUB and not path.exists():
        path = fetch_data_file(reference, HUB[reference])
    elif not path.is_file() or path.suffix not in (".jsonl", ".json"):
        raise ValueError(f"{reference}: no such instructions; give a .jsonl or .json file, or one of {[*HUB, *CORPUS]}")
    rows = json_list(path) if path.suffix == ".json" else json_lines(path)
    found = [_instruction(row, where) for where, row in rows]
    if not found:
        raise ValueError(f"{path}: it holds no row; give rows {{query, response}}")
    return found


def write_instructions(path: Path, instructions: Iterable[Instruction]) -> None:
    """Writes `.jsonl` rows `{query, response}`, which `read_instructions` reads."""
    with write_beside(path) as partial:
        lines = (json.dumps(asdict(i), ensure_ascii=False) + "\n" for i in instructions)
        partial.write_text("".join(lines), encoding="utf-8")


def _instruction(row: Any, where: str) -> Instruction:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("query", "response")):
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: `query` and `response` must be there and be text; got {keys}")
    if not row["query"].strip() or not row["response"].strip():
        raise ValueError(f"{where}: `query` or `response` is empty; fill it or remove the row")
    return Instruction(*(require_characters(row[key], where) for key in ("query", "response")))
