"""New tasks that a model is fine-tuned on: worked sums, and sentences in a made-up language."""

from dataclasses import dataclass
from typing import Literal

from subspacelab.data.instructions import Instruction

TaskName = Literal["sums", "words"]


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
    """Draws the problems from `seed`; ValueError for more than there are, and for another name."""
    raise NotImplementedError
