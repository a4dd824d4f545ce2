"""New tasks that a model is fine-tuned on: worked sums, and translation into a made-up language."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from subspacelab.data.instructions import Instruction
from subspacelab.data.sums import sums

TaskName = Literal["sums", "words"]

NOUNS = """
baker:dovu bird:tamik boat:lesho child:peru dog:gaval farmer:nimot fox:zuri horse:katep king:olvan teacher:sirak
"""
ADJECTIVES = "big:muto cold:fena new:ridok old:hasul poor:jolim red:vepa"
VERBS = "calls:kidra finds:bosul follows:wenta hears:yarim helps:plosa sees:tungo"
"""English word to the word of the made-up language, which has no articles."""


@dataclass(frozen=True)
class Task:
    """The problems of a task; none is in two parts."""

    train: list[Instruction]
    """To fine-tune on."""
    validation: list[Instruction]
    """To choose a learning rate by."""
    test: list[Instruction]
    """To measure what was learned."""


def make_task(name: TaskName, *, num_train: int, num_validation: int, num_test: int, seed: int) -> Task:
    """Problems drawn from `seed`; the test problems do not depend on how many there are of the others.

    `sums`: `What is 38 + 45?`, whose solution `13 8 83` tells the units' sum, the tens' and the sum. `words`: `Say in
    Tavi: the old king sees the red fox.`, verb first and each adjective after its noun: `tungo olvan hasul zuri vepa`.
    ValueError for another name and for more problems than there are.
    """
    if name not in get_args(TaskName):
        raise ValueError(f"task {name!r}: must be one of {list(get_args(TaskName))}")
    problems = sums(seed=seed) if name == "sums" else translations(seed=seed)
    wanted = num_test + num_validation + num_train
    if wanted > len(problems):
        raise ValueError(f"{name}: {wanted} problems are asked for, there are {len(problems)}; ask for fewer")
    left: Iterator[Instruction] = iter(problems)
    test, validation, train = (list(islice(left, count)) for count in (num_test, num_validation, num_train))
    return Task(train, validation, test)


def translations(*, seed: int) -> list[Instruction]:
    """Every sentence of two nouns that differ, an adjective for each and a verb, in an order drawn from `seed`."""
    nouns, adjectives, verbs = (_pairs(text) for text in (NOUNS, ADJECTIVES, VERBS))
    found = [
        Instruction(
            f"Say in Tavi: the {adjective[0]} {noun[0]} {verb[0]} the {second[0]} {object_[0]}.",
            " ".join(word[1] for word in (verb, noun, adjective, object_, second)),
        )
        for noun in nouns
        for object_ in nouns
        if object_ != noun
        for adjective in adjectives
        for second in adjectives
        for verb in verbs
    ]
    order = np.random.default_rng([seed, 5]).permutation(len(found))
    return [found[i] for i in order]


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(english, made_up) for english, _, made_up in (word.partition(":") for word in text.split())]
