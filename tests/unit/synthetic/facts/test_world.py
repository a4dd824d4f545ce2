from itertools import islice

import pytest

from subspacelab.synthetic.facts.corpus import FIRST_NAMES, RELATIONS, biographies, fact_questions, people


def test_the_seed_draws_the_world() -> None:
    assert people(20, seed=1) == people(20, seed=1)
    assert people(20, seed=1) != people(20, seed=2)


def test_every_question_has_one_answer() -> None:
    world = people(64, seed=5)
    asked = fact_questions(world)
    assert len({fact.query for fact in asked}) == len(asked) == 64 * len(RELATIONS)
    assert len({person.name.split()[0] for person in world}) == 64
    for name, relation in RELATIONS.items():
        assert {person.facts[name] for person in world} <= set(relation.values)
        assert len({person.facts[name] for person in world}) > 8, "guessing the commonest value must not pay"


def test_a_biography_tells_every_fact_of_its_person_and_of_nobody_else() -> None:
    world = people(12, seed=0)
    told = list(islice(biographies(world, seed=0), 48))
    for start in range(0, 48, 12):
        assert {text.split()[0] for text in told[start : start + 12]} == {p.name.split()[0] for p in world}
    for text in told:
        (person,) = (p for p in world if text.startswith(p.name))
        words = set(text.replace(".", "").split())
        assert words >= set(person.facts.values())
        for name, relation in RELATIONS.items():
            assert words & set(relation.values) == {person.facts[name]}


def test_biographies_of_one_person_differ() -> None:
    told = list(islice(biographies(people(1, seed=0), seed=0), 50))
    assert len(set(told)) > 40


def test_the_number_of_people_is_checked() -> None:
    assert len(FIRST_NAMES.split()) == len(set(FIRST_NAMES.split())) == 64
    for count in (0, 65):
        with pytest.raises(ValueError, match=f"people: {count} must be from 1 to 64"):
            people(count, seed=0)
