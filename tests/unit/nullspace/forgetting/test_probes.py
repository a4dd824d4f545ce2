"""The committed probes, and files that are none."""

import calendar
import re
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from subspacelab.nullspace.forgetting.probes import Probe, asked_probes, calibration_probes, read_probes

HEADER = "kind,question,lead,answer\n"
PROBES = read_probes()


def of_kind(kind: str) -> list[Probe]:
    return [probe for probe in PROBES if probe.kind == kind]


def test_there_are_several_hundred_and_every_kind_has_answers_to_be_ranked_among() -> None:
    assert len(PROBES) > 1000
    for kind in {probe.kind for probe in PROBES}:
        assert len({probe.answer for probe in of_kind(kind)}) > 4, kind


def test_no_question_or_lead_gives_the_answer_away() -> None:
    same = {"plural", "past tense"}  # sheep and cut stay as they are
    for probe in PROBES:
        word = re.compile(rf"\b{re.escape(probe.answer)}\b")
        if probe.kind not in same and not probe.answer.startswith("Mexico"):
            assert not word.search(probe.lead), probe
            assert not word.search(probe.question), probe


def test_no_lead_has_two_answers() -> None:
    assert max(Counter(probe.lead for probe in PROBES).values()) == 1


def test_days_months_and_letters_follow_each_other() -> None:
    days, months = list(calendar.day_name), list(calendar.month_name)[1:]
    after = {p.lead.split()[3]: p.answer for p in of_kind("day")}
    assert after == dict(zip(days, days[1:] + days[:1], strict=True))
    after = {p.lead.split()[3]: p.answer for p in of_kind("month") if p.question.startswith("Which month comes")}
    assert after == dict(zip(months, months[1:] + months[:1], strict=True))
    assert [p.answer for p in of_kind("month") if p.question.startswith("Which is")] == months
    letters = string.ascii_uppercase
    assert [(p.lead.split()[3], p.answer) for p in of_kind("letter")] == list(pairwise(letters))


@pytest.mark.parametrize(
    "lead", ["The capital of France is", "The chemical symbol of gold is", "The plural of wolf is"]
)
def test_a_fact_that_everybody_knows(lead: str) -> None:
    (answer,) = [probe.answer for probe in PROBES if probe.lead == lead]
    assert answer == {"France": "Paris", "gold": "Au", "wolf": "wolves"}[lead.split()[-2]]


def test_what_calibration_reads_is_not_asked() -> None:
    read, asked = calibration_probes(PROBES), asked_probes(PROBES)
    assert {p.question for p in read}.isdisjoint(p.question for p in asked)
    assert len(read) + len(asked) == len(PROBES)
    assert {p.kind for p in read} == {p.kind for p in asked} == {p.kind for p in PROBES}


def test_an_answer_follows_its_lead() -> None:
    probe = Probe("kind", "Who?", "It is", "me")
    assert probe.lead + probe.response == "It is me."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind,question,answer\nday,a,b\n", "columns"),
        (HEADER, "holds no probe"),
        (HEADER + "day,a,b\n", "line 2: a field is missing"),
        (HEADER + "day,a,b,c,d\n", "line 2: a field is missing"),
        (HEADER + "day,a,b, c\n", "begins or ends with a space"),
        (HEADER + "day,a,b,\n", "a field is missing, empty"),
        (HEADER + "day,a,b,c\nday,a,d,e\n", "asks 'a' twice"),
        (HEADER + 'day,"a"b,c,d\n', "not CSV"),
        ("", "columns"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as found:
        read_probes(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)
