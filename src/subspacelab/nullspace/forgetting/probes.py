"""Old knowledge: questions of general knowledge that the base is asked, and those of them that it can answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROBES = Path(__file__).with_name("probes.csv")
"""Our own sentences about common facts; its columns are the fields of `Probe`."""


@dataclass(frozen=True)
class Probe:
    """A question, and how its answer begins: `What is the capital of France?`, `The capital of France is`, `Paris`."""

    kind: str
    """Capital, currency, opposite, ...: the right answer is ranked among the distinct answers of its kind."""
    question: str
    """What is asked."""
    lead: str
    """The words that the response is given to begin with, so that the answer is the next word."""
    answer: str
    """The right one, without a point."""


def read_probes(path: Path = PROBES) -> list[Probe]:
    """All probes of a file."""
    raise NotImplementedError


def calibration_half(probes: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """(those that calibration may read, those that are asked): no fact is in both."""
    raise NotImplementedError
