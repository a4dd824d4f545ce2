"""A small invented world: people and what is true of each, told in varied sentences and asked as questions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from subspacelab.data.instructions import Instruction

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
