"""Old knowledge: questions of general knowledge that the base is asked, with the one right answer of each.

The sentences are ours; a fact is no one's. Countries, capitals, currencies, continents and neighbours were compared
with GeoNames (CC BY 4.0), currencies and official languages with Unicode CLDR (Unicode-3.0), chemical symbols with
the IUPAC table. What has several right answers, or a common second spelling, was left out: capitals of South Africa
or Kazakhstan, continents of Russia or Egypt, official languages of Switzerland.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from subspacelab.data.text_files import open_text

PROBES = Path(__file__).with_name("probes.csv")
"""A row a probe, kind by kind; its columns are the fields of `Probe`."""


@dataclass(frozen=True)
class Probe:
    """A question, and how its answer begins: `What is the capital of France?`, `The capital of France is`, `Paris`."""

    kind: str
    """Capital, currency, opposite, ...: the right answer is ranked among the distinct answers of its kind."""
    question: str
    """What is asked."""
    lead: str
    """The words that the response is given to begin with, so that the answer is what comes next."""
    answer: str
    """The right one, without a point."""

    @property
    def response(self) -> str:
        """What a right response says after the lead: the answer and a point, which ends the word."""
        return ended(self.answer)


def ended(answer: str) -> str:
    """An answer as it stands after a lead."""
    return f" {answer}."


def read_probes(path: Path = PROBES) -> list[Probe]:
    """All probes of a file; ValueError, in one line, names a row that is not one, or a question asked twice."""
    columns = [f.name for f in fields(Probe)]
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        if reader.fieldnames != columns:
            raise ValueError(f"{path}: its columns are {reader.fieldnames}; {columns} are needed")
        try:
            found = [_probe(row, f"{path}, line {reader.line_num}") for row in reader]
        except csv.Error as e:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({e}); restore it") from e
    asked = Counter(probe.question for probe in found)
    twice = next((question for question, count in asked.items() if count > 1), None)
    if twice or not found:
        raise ValueError(f"{path}: {f'asks {twice!r} twice' if twice else 'holds no probe'}; one row a question")
    return found


def _probe(row: dict[str, str], where: str) -> Probe:
    if None in row or not all(value and value.strip() == value for value in row.values()):
        raise ValueError(f"{where}: a field is missing, empty or begins or ends with a space; got {row}")
    return Probe(**row)


def calibration_probes(probes: Sequence[Probe]) -> list[Probe]:
    """Every second probe, the first among them: those that calibration may read."""
    return list(probes[0::2])


def asked_probes(probes: Sequence[Probe]) -> list[Probe]:
    """The others: those that models are asked."""
    return list(probes[1::2])
