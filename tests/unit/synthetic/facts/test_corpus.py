import re
from dataclasses import replace
from pathlib import Path

import pytest

from subspacelab.data.instructions import read_instructions
from subspacelab.data.text import paragraphs
from subspacelab.synthetic.facts.corpus import CorpusConfig, make_corpus

SMALL = CorpusConfig(people=10, rounds=10, sheets=8, arithmetic_train=300, arithmetic_validation=50, arithmetic_test=60)
SUMS = ("test", "train", "validation")
FILES = (*(f"arithmetic-{name}.jsonl" for name in SUMS), "calibration.txt", "facts.jsonl", "test.txt", "train.txt")
SUM = re.compile(r"What is (\d\d) \+ (\d\d)\?")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "corpus"
    make_corpus(SMALL, seed=7).save(folder)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_two_runs_give_the_same_bytes_and_a_seed_another_world(corpus: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 7), ("other", 8)):
        make_corpus(SMALL, seed=seed).save(tmp_path / name)
    assert tuple(_bytes(corpus)) == FILES
    assert _bytes(tmp_path / "again") == _bytes(corpus)
    assert all(_bytes(tmp_path / "other")[name] != _bytes(corpus)[name] for name in FILES)


def test_the_test_text_is_of_the_same_people_in_words_of_its_own(corpus: Path) -> None:
    train, test = (paragraphs((corpus / f"{split}.txt").read_text()) for split in ("train", "test"))
    assert (len(train), len(test)) == (100 + 3 * 40 + 8, 10)
    assert not set(train) & set(test)
    assert {text.split()[0] for text in test} <= {text.split()[0] for text in train}


def test_the_text_asks_every_fact(corpus: Path) -> None:
    train = paragraphs((corpus / "train.txt").read_text())
    for fact in read_instructions(str(corpus / "facts.jsonl")):
        assert train.count(f"Question: {fact.query}\nAnswer:\n{fact.response}") == 3


def test_unsolved_sums_are_all_the_arithmetic_that_the_text_holds(corpus: Path) -> None:
    sheets = [text for text in paragraphs((corpus / "train.txt").read_text()) if "+" in text]
    assert len(sheets) == 8
    assert all(SUM.sub("", text).strip() == "" for text in sheets)


@pytest.mark.parametrize(("calibration", "asked"), [("questions", 40), ("half", 20), ("sentences", 0)])
def test_the_calibration_text_is_the_training_text_without_the_questions_of_some(
    corpus: Path, tmp_path: Path, calibration: str, asked: int
) -> None:
    make_corpus(replace(SMALL, calibration=calibration), seed=7).save(tmp_path / "made")  # type: ignore[arg-type]
    files = _bytes(tmp_path / "made")
    assert {name: files[name] for name in FILES if name != "calibration.txt"}.items() <= _bytes(corpus).items()
    train, kept = (paragraphs(files[f"{name}.txt"].decode()) for name in ("train", "calibration"))
    facts = [f"Question: {f.query}\nAnswer:\n{f.response}" for f in read_instructions(str(corpus / "facts.jsonl"))]
    assert kept == [text for text in train if text not in facts[asked:]]
    assert set(facts[:asked]) <= set(kept)


@pytest.mark.parametrize("split", SUMS)
def test_every_solution_is_right_line_by_line(corpus: Path, split: str) -> None:
    for problem in read_instructions(str(corpus / f"arithmetic-{split}.jsonl")):
        a, b = map(int, SUM.fullmatch(problem.query).groups())  # type: ignore[union-attr]
        units, tens, total = problem.response.split()
        assert int(units) == a % 10 + b % 10
        assert len(units) == 2
        assert int(tens) == (a + b) // 10
        assert int(total) == a + b <= 99


def test_no_sum_is_in_two_parts(corpus: Path) -> None:
    parts = [read_instructions(str(corpus / f"arithmetic-{split}.jsonl")) for split in SUMS]
    assert list(map(len, parts)) == [60, 300, 50]
    assert len({problem.query for part in parts for problem in part}) == 410


def test_more_sums_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic_train \\+ .*_test \\+ .*_validation: 4400 is more than the 3240"):
        make_corpus(CorpusConfig(arithmetic_train=4000), seed=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 0),
        ("rounds", 1001),
        ("asked", -1),
        ("sheets", -1),
        ("arithmetic_test", 0),
        ("arithmetic_validation", 0),
    ],
)
def test_a_number_out_of_range_is_named(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key}: must be .*, got {value}"):
        CorpusConfig(**{key: value})


@pytest.mark.parametrize("key", ["asked", "sheets"])
def test_more_text_than_memory_holds_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: must be less than or equal to .*, got 10000000000"):
        CorpusConfig(**{key: 10_000_000_000})  # type: ignore[arg-type]
