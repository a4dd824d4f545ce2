"""Sums that are right, and a made-up language that can be read back."""

import re

import pytest

from subspacelab.nullspace.forgetting.tasks import ADJECTIVES, NOUNS, VERBS, make_task, translations

SIZES = {"num_train": 30, "num_validation": 20, "num_test": 10}


@pytest.mark.parametrize("name", ["sums", "words"])
def test_no_problem_is_in_two_parts_and_a_seed_gives_the_same(name: str) -> None:
    task = make_task(name, **SIZES, seed=1)  # type: ignore[arg-type]
    assert (len(task.train), len(task.validation), len(task.test)) == (30, 20, 10)
    assert len({row.query for row in (*task.train, *task.validation, *task.test)}) == 60
    assert task == make_task(name, **SIZES, seed=1)  # type: ignore[arg-type]
    assert task.test != make_task(name, **SIZES, seed=2).test  # type: ignore[arg-type]
    assert task.test == make_task(name, **(SIZES | {"num_train": 50}), seed=1).test  # type: ignore[arg-type]


def test_sums_are_right() -> None:
    for row in make_task("sums", **SIZES, seed=4).train:
        a, b = map(int, re.findall(r"\d+", row.query))
        assert row.response.split()[-1] == str(a + b)


def test_the_made_up_language_can_be_read_back() -> None:
    words = dict(pair.split(":")[::-1] for pair in f"{NOUNS} {ADJECTIVES} {VERBS}".split())
    assert len(words) == len(set(words.values())) == len(f"{NOUNS} {ADJECTIVES} {VERBS}".split())
    rows = translations(seed=0)
    assert len(rows) == 10 * 9 * 6 * 6 * 6
    for row in rows[::97]:
        verb, noun, adjective, object_, second = (words[word] for word in row.response.split())
        assert row.query == f"Say in Tavi: the {adjective} {noun} {verb} the {second} {object_}."


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        make_task("poems", **SIZES, seed=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="50000 problems are asked for|50030"):
        make_task("words", **(SIZES | {"num_train": 50_000}), seed=1)
