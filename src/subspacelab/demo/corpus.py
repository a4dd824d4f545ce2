"""The demo's text: biographies to learn and to calibrate on, questions about facts, sums to be fine-tuned on."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from subspacelab.data.instructions import prompt_of, write_instructions
from subspacelab.demo.arithmetic import question, sums
from subspacelab.demo.world import Person, biographies, fact_questions, people
from subspacelab.files import replace_folder
from subspacelab.params import require_at_least

SHEET = 4  # sums on an exercise sheet
MAX_ROUNDS = 1000  # 3,456 biographies of a person differ: enough are left for the test text
MAX_SHEETS = 100_000  # all are held in memory


@dataclass(frozen=True)
class CorpusConfig:
    """Stage `corpus`: how much of everything."""

    people: int = 60
    """People of the world; each has four facts."""
    rounds: int = 20
    """Biographies of each person in train.txt, each in new words; a tenth as many in test.txt, at least one."""
    asked: int = 3
    """Times that each fact stands in train.txt as a question with its answer: text of the kind that is recalled."""
    sheets: int = 100
    """Sheets of sums without their solutions in train.txt, that the words and signs of sums are known."""
    arithmetic_train: int = 2000
    """Sums with solutions to be fine-tuned on."""
    arithmetic_test: int = 200
    """Other sums, to measure what was learned."""

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise ValueError(f"rounds must be from 1 to {MAX_ROUNDS}, got {self.rounds}")
        for key, most in (("asked", MAX_ROUNDS), ("sheets", MAX_SHEETS)):
            if getattr(self, key) > most:
                raise ValueError(f"{key} must be at most {most}, got {getattr(self, key)}")
        require_at_least(0, self, "asked", "sheets")
        require_at_least(1, self, "arithmetic_train", "arithmetic_test")


def write_corpus(folder: Path, *, settings: CorpusConfig, seed: int) -> None:
    """Writes train.txt, test.txt (a paragraph a document), facts.jsonl, arithmetic-train.jsonl, arithmetic-test.jsonl.

    Test paragraphs tell the same facts in an order and words that train.txt does not hold; no sum is in both of the
    arithmetic files. ValueError when more sums are asked for than there are.
    """
    world = people(settings.people, seed=seed)
    problems = sums(seed=seed)
    asked = settings.arithmetic_train + settings.arithmetic_test
    if asked > len(problems):
        raise ValueError(f"arithmetic_train + arithmetic_test: {asked} is more than the {len(problems)} sums there are")
    train, test = _documents(world, settings, seed)
    with replace_folder(folder) as partial:
        (partial / "train.txt").write_text("\n\n".join(train) + "\n", encoding="utf-8")
        (partial / "test.txt").write_text("\n\n".join(test) + "\n", encoding="utf-8")
        write_instructions(partial / "facts.jsonl", fact_questions(world))
        write_instructions(partial / "arithmetic-train.jsonl", problems[: settings.arithmetic_train])
        write_instructions(partial / "arithmetic-test.jsonl", problems[settings.arithmetic_train : asked])


def _documents(world: list[Person], settings: CorpusConfig, seed: int) -> tuple[list[str], list[str]]:
    """Paragraphs of the training text, in a random order, and those of the test text, which are in none of them."""
    told = biographies(world, seed=seed)
    train = list(islice(told, settings.rounds * len(world)))
    train += [prompt_of(fact.query) + fact.response for fact in fact_questions(world)] * settings.asked
    train += islice(_sheets(seed), settings.sheets)
    known = set(train)
    test = list(islice((text for text in told if text not in known), max(1, settings.rounds // 10) * len(world)))
    order = np.random.default_rng([seed, 3]).permutation(len(train))
    return [train[i] for i in order], test


def _sheets(seed: int) -> Iterator[str]:
    """Endless sheets of sums nobody has solved."""
    rng = np.random.default_rng([seed, 4])
    while True:
        yield " ".join(question(int(a), int(b)) for a, b in rng.integers(10, 90, (SHEET, 2)))
