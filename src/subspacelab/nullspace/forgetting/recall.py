"""How a model answers probes: to the letter, and where the right answer ranks among all answers of its kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subspacelab.models.fine_tuning import Example
from subspacelab.models.teacher_forcing import is_greedy, log_prob_of, prompt_length, read_responses, response_of
from subspacelab.nullspace.forgetting.materials import Materials, said_after


@dataclass(frozen=True)
class Answered:
    """One probe's."""

    exact: bool
    """Whether the greedy response after the lead begins with the right answer, as whole words."""
    rank_score: float
    """1 where the right answer is the likeliest of its kind, 0 where it is the least likely; linear in its place."""


@dataclass(frozen=True)
class _First:
    """What the first pass tells of a probe."""

    exact: bool
    log_prob: float
    rivals: list[list[int]]
    """Answers whose first token alone is likelier than the whole right answer: no other can be likelier."""


def answer_probes(
    model: Any,
    materials: Materials,
    places: Sequence[int],
    *,
    batch_size: int,
    see: Callable[[int, Tensor], None] = lambda i, log_probs: None,
) -> list[Answered]:
    """What becomes of the probes at `places`.

    Answers are compared by log p(answer and point | question, lead), summed over their tokens. It is at most that of
    the first token, so that only answers whose first token is likelier than the whole right answer are read at all.
    `see(i, log_probs)` gets the log-probabilities [tokens, vocab] at the right answer of the i-th of these probes.
    """
    rows = [materials.probe_rows[i] for i in places]
    firsts: dict[int, _First] = {}
    for i, log_probs in read_responses(model, rows, pad=materials.pad, batch_size=batch_size):
        firsts[i] = _first(materials, places[i], log_probs)
        see(i, log_probs)
    likelier = _count_likelier(model, materials, rows, firsts, batch_size)
    counts = [len(materials.answers[materials.probes[i].kind]) for i in places]
    return [Answered(firsts[i].exact, 1 - likelier[i] / max(counts[i] - 1, 1)) for i in range(len(rows))]


def _first(materials: Materials, place: int, log_probs: Tensor) -> _First:
    probe, response = materials.probes[place], torch.tensor(response_of(materials.probe_rows[place]))
    right = log_prob_of(log_probs, response)
    others = [ids for answer, ids in materials.answers[probe.kind].items() if answer != probe.answer]
    said = is_greedy(log_probs[:-1], response[:-1])  # without the point
    exact = said and not materials.continues[log_probs[-1].argmax()]
    return _First(bool(exact), right, [ids for ids in others if float(log_probs[0, ids[0]]) > right])


def _count_likelier(
    model: Any, materials: Materials, rows: Sequence[Example], firsts: Mapping[int, _First], batch_size: int
) -> list[int]:
    """Of each probe, the answers of its kind that are likelier than the right one; its prompt is read once for all."""
    likelier = [0] * len(rows)
    for i, first in sorted(firsts.items()):
        prompt = rows[i].input_ids[: prompt_length(rows[i])]
        examples = [said_after(prompt, rival) for rival in first.rivals]
        if examples:
            for j, log_probs in read_responses(model, examples, pad=materials.pad, batch_size=batch_size):
                likelier[i] += log_prob_of(log_probs, torch.tensor(first.rivals[j])) > first.log_prob
    return likelier
