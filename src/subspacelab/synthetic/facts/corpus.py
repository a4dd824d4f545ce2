"""The text of the synthetic study: an invented world in sentences, its facts as questions, and sums with solutions."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from subspacelab.core.files import replace_folder
from subspacelab.core.settings import Count, settings
from subspacelab.data.instructions import Instruction, prompt_of, write_instructions
from subspacelab.data.sums import question, sums

FIRST_NAMES = """
Ada Aldo Alma Anton Aria Arno Beata Bela Bruno Carla Cesar Clara Cyril Dario Delia Edda Egon Elias Elsa Emil Enzo Erik
Fabio Felix Flora Frida Gino Greta Gustav Hanna Hugo Ida Igor Irma Ivo Jana Jonas Julia Karl Katja Kira Lars Lea Leon
Lina Luca Magda Marco Mara Milo Mona Nadia Nils Nora Oskar Otto Paula Petra Rita Rosa Sven Tara Theo Vera
"""
SURNAMES = "Adler Berg Costa Duval Engel Ferro Grant Holm Janssen Keller Lopez Moser Novak Ortiz Pavel Rossi"
CITIES = "Aston Belmar Cadiz Dorna Elvas Farnham Genoa Halden Ipswich Jarna Kosice Lyra Malmo Narva Ostend Porto"
PROFESSIONS = """
baker barber carpenter chemist dentist farmer gardener jeweller lawyer mason nurse painter pilot sailor tailor teacher
"""
INSTRUMENTS = """
accordion bassoon bugle cello clarinet cornet fiddle flute guitar harp lute oboe organ piano trumpet viola
"""
YEARS = range(1940, 2000)


@dataclass(frozen=True)
class Relation:
    """One kind of fact; `{name}` and `{value}` stand for the person and what is true."""

    question: str
    """How it is asked."""
    statements: tuple[str, ...]
    """How it is told after the name; the subject is put in front by the biography."""
    values: tuple[str, ...]
    """What it may be."""


RELATIONS = {
    "city": Relation(
        "In which city does {name} live?",
        ("lives in {value}", "has a flat in {value}", "moved to {value} long ago", "calls {value} home"),
        tuple(CITIES.split()),
    ),
    "profession": Relation(
        "What is the profession of {name}?",
        ("works as a {value}", "earns money as a {value}", "was trained as a {value}", "is known as a good {value}"),
        tuple(PROFESSIONS.split()),
    ),
    "year": Relation(
        "In which year was {name} born?",
        ("was born in {value}", "came into the world in {value}", "has {value} as year of birth"),
        tuple(map(str, YEARS)),
    ),
    "instrument": Relation(
        "Which instrument does {name} play?",
        ("plays the {value}", "practises the {value} every evening", "owns a very old {value}"),
        tuple(INSTRUMENTS.split()),
    ),
}


@dataclass(frozen=True)
class Person:
    """Somebody of the world."""

    name: str
    """First name and surname; no two people share a first name."""
    facts: dict[str, str]
    """Relation to its value."""


def people(count: int, *, seed: int) -> list[Person]:
    """Draws `count` people, each with one value of every relation, from `seed`."""
    names = FIRST_NAMES.split()
    if not 1 <= count <= len(names):
        raise ValueError(f"people: {count} must be from 1 to {len(names)}, the number of first names")
    rng = np.random.default_rng([seed, 0])
    first = rng.permutation(names)[:count]
    last = rng.choice(SURNAMES.split(), count)
    values = {name: rng.choice(relation.values, count) for name, relation in RELATIONS.items()}
    return [
        Person(f"{first[i]} {last[i]}", {name: str(drawn[i]) for name, drawn in values.items()}) for i in range(count)
    ]


def fact_questions(population: list[Person]) -> list[Instruction]:
    """Every fact of every person as a question and its answer."""
    return [
        Instruction(relation.question.format(name=person.name), person.facts[name])
        for person in population
        for name, relation in RELATIONS.items()
    ]


def biographies(population: list[Person], *, seed: int) -> Iterator[str]:
    """Endless paragraphs, one person after another in rounds: all facts, in a new order and new words each time."""
    rng = np.random.default_rng([seed, 1])
    while True:
        for i in rng.permutation(len(population)):
            yield _biography(population[i], rng)


def _biography(person: Person, rng: np.random.Generator) -> str:
    """Two facts a sentence; the name first, then `and`, later the first name alone."""
    told = []
    for name in rng.permutation(list(RELATIONS)):
        statements = RELATIONS[str(name)].statements
        told.append(statements[rng.integers(len(statements))].format(value=person.facts[str(name)]))
    sentences = []
    for i in range(0, len(told), 2):
        subject = person.name if i == 0 else person.name.split()[0]
        sentences.append(f"{subject} {' and '.join(told[i : i + 2])}.")
    return " ".join(sentences)


SHEET = 4  # sums on an exercise sheet


@settings
class CorpusConfig:
    """Stage `corpus`: how much of everything."""

    people: Count = 60
    """People of the world; each has four facts."""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 20
    """Biographies of each person in train.txt, each in new words; a tenth as many in test.txt, at least one. There are
    3,456 different ones: of 1,000 enough are left for the test text."""
    asked: Annotated[int, Field(ge=0, le=1000)] = 3
    """Times that each fact stands in train.txt as a question with its answer: text of the kind that is recalled."""
    sheets: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Sheets of sums without their solutions in train.txt, that the words and signs of sums are known. All
    are held in memory."""
    arithmetic_train: Count = 2000
    """Sums with solutions to be fine-tuned on."""
    arithmetic_validation: Count = 200
    """Other sums, to choose learning rates by."""
    arithmetic_test: Count = 200
    """Sums that are in neither, to measure what was learned."""
    calibration: Literal["questions", "half", "sentences"] = "half"
    """Whose questions the calibration text asks: everybody's, those of the first half of the people, or nobody's."""

    @property
    def calibrated_people(self) -> int:
        """How many people's questions the calibration text asks."""
        return {"questions": self.people, "half": self.people // 2, "sentences": 0}[self.calibration]


@dataclass(frozen=True)
class Corpus:
    """All that the llm reads and is asked."""

    texts: dict[str, list[str]]
    """Paragraphs of the parts train, calibration and test."""
    facts: list[Instruction]
    """Every fact as a question with its answer."""
    arithmetic: dict[str, list[Instruction]]
    """Sums with solutions, of the parts train, test and validation."""

    def save(self, folder: Path) -> None:
        """Writes {train,calibration,test}.txt (a paragraph a document), facts.jsonl and arithmetic-*.jsonl."""
        with replace_folder(folder) as partial:
            for name, documents in self.texts.items():
                (partial / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
            write_instructions(partial / "facts.jsonl", self.facts)
            for name, problems in self.arithmetic.items():
                write_instructions(partial / f"arithmetic-{name}.jsonl", problems)


def make_corpus(settings: CorpusConfig, *, seed: int) -> Corpus:
    """The world of `seed` in text, facts and sums.

    The calibration text is the training text without the questions that `settings.calibration` leaves out: everybody's
    biographies stay, so that two people differ in nothing but whether they are asked about. Test paragraphs tell the
    same facts in an order and words that the training text does not hold; no sum is in two parts. ValueError when more
    sums are asked for than there are.
    """
    world = people(settings.people, seed=seed)
    problems = sums(seed=seed)
    parts = {"train": settings.arithmetic_train, "test": settings.arithmetic_test}
    parts |= {"validation": settings.arithmetic_validation}  # last: the other two are what they were without it
    asked = sum(parts.values())
    if asked > len(problems):
        names = " + ".join(f"arithmetic_{name}" for name in parts)
        raise ValueError(f"{names}: {asked} is more than the {len(problems)} sums there are")
    train, test = _documents(world, settings, seed)
    left_out = set(map(_asked, fact_questions(world[settings.calibrated_people :])))
    texts = {"train": train, "calibration": [text for text in train if text not in left_out], "test": test}
    left = iter(problems)
    return Corpus(texts, fact_questions(world), {name: list(islice(left, count)) for name, count in parts.items()})


def _documents(world: list[Person], settings: CorpusConfig, seed: int) -> tuple[list[str], list[str]]:
    """Paragraphs of the training text, in a random order, and those of the test text, which are in none of them."""
    told = biographies(world, seed=seed)
    train = list(islice(told, settings.rounds * len(world)))
    train += list(map(_asked, fact_questions(world))) * settings.asked
    train += islice(_sheets(seed), settings.sheets)
    known = set(train)
    test = list(islice((text for text in told if text not in known), max(1, settings.rounds // 10) * len(world)))
    order = np.random.default_rng([seed, 3]).permutation(len(train))
    return [train[i] for i in order], test


def _asked(fact: Instruction) -> str:
    """A fact as a question with its answer."""
    return prompt_of(fact.query) + fact.response


def _sheets(seed: int) -> Iterator[str]:
    """Endless sheets of sums nobody has solved."""
    rng = np.random.default_rng([seed, 4])
    while True:
        yield " ".join(question(int(a), int(b)) for a, b in rng.integers(10, 90, (SHEET, 2)))
