"""Everything that models are scored on, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from subspacelab.data.instructions import Instruction
from subspacelab.data.windows import cut_windows
from subspacelab.models.fine_tuning import IGNORED, Example
from subspacelab.models.tokens import encode, padding_id, prefix_of, require_readable
from subspacelab.nullspace.forgetting.probes import Probe, asked_probes, ended, read_probes
from subspacelab.nullspace.forgetting.prompts import continues_word, end_token, prompt_ids, response_ids
from subspacelab.nullspace.forgetting.tasks import Task, TaskName, make_task
from subspacelab.nullspace.forgetting.texts import held_out_prose


@dataclass(frozen=True)
class Materials:
    """Read by one tokenizer; `Example.labels` mark what a model is to say."""

    probes: list[Probe]
    """Old knowledge, none of it in a calibration text; `BaseRecord.known` tells which of it counts."""
    probe_rows: list[Example]
    """Each probe's question and lead, and its answer with a point, one token, behind which nothing is read."""
    answers: dict[str, dict[str, list[int]]]
    """Kind of probe to its distinct answers to their tokens."""
    continues: Bool[Tensor, " vocab"]
    """Whether a token goes on with the word before it (`continues_word`)."""
    task: Task
    """The new one: `task.train` is what models are trained on."""
    validation_rows: list[Example]
    """Its validation problems, with the token that ends a response."""
    test_rows: list[Example]
    """Its test problems, likewise."""
    window_rows: list[Example]
    """Held-out English: every token after what a window begins with is to be said."""
    pad: int
    """What fills up a batch."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids, hexadecimal: a `BaseRecord` fits the materials that it was made with."""
        rows = (*self.probe_rows, *self.validation_rows, *self.test_rows, *self.window_rows)
        content = [[(row.input_ids, row.labels) for row in rows], self.answers, self.pad]
        return sha256(repr(content).encode()).hexdigest()


def read_materials(
    config: Any,
    tokenizer: Any,
    task: TaskName,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    num_windows: int,
    seq_len: int,
    seed: int,
    probes: Sequence[Probe] | None = None,
) -> Materials:
    """Probes, problems and windows of held-out English, the last two drawn from `seed`, for a model's config.

    `probes` are by default those of this package that no calibration reads. ValueError for what the tokenizer or the
    model cannot read, and for more problems or text than there is.
    """
    probes = asked_probes(read_probes()) if probes is None else list(probes)
    problems = make_task(task, num_train=num_train, num_validation=num_validation, num_test=num_test, seed=seed)
    found = Materials(
        probes=probes,
        probe_rows=[_row(tokenizer, probe.question, probe.response, lead=probe.lead) for probe in probes],
        answers=_answers(tokenizer, probes),
        continues=continues_word(tokenizer, config.get_text_config().vocab_size),
        task=problems,
        validation_rows=[_problem(tokenizer, row) for row in problems.validation],
        test_rows=[_problem(tokenizer, row) for row in problems.test],
        window_rows=_windows(tokenizer, num_windows=num_windows, seq_len=seq_len, seed=seed),
        pad=padding_id(config, tokenizer),
    )
    rows = [*found.probe_rows, *found.validation_rows, *found.test_rows, *found.window_rows]
    require_readable(config, tokenizer, [row.input_ids for row in rows], remedy="give a model with more positions")
    return found


def said_after(prompt: Sequence[int], response: Sequence[int]) -> Example:
    """A prompt and the response whose probability is wanted."""
    return Example([*prompt, *response], [IGNORED] * len(prompt) + [*response])


def _row(tokenizer: Any, query: str, response: str, *, lead: str = "", end: int | None = None) -> Example:
    said = response_ids(tokenizer, query, response, lead)
    return said_after(prompt_ids(tokenizer, query, lead), said if end is None else [*said, end])


def _problem(tokenizer: Any, row: Instruction) -> Example:
    return _row(tokenizer, row.query, row.response, end=end_token(tokenizer))


def _answers(tokenizer: Any, probes: Sequence[Probe]) -> dict[str, dict[str, list[int]]]:
    """Encoded after the lead of the first probe that it answers, as all leads of a kind end alike."""
    found: dict[str, dict[str, list[int]]] = {}
    for probe in probes:
        of_kind = found.setdefault(probe.kind, {})
        if probe.answer not in of_kind:
            of_kind[probe.answer] = response_ids(tokenizer, probe.question, ended(probe.answer), probe.lead)
    return found


def _windows(tokenizer: Any, *, num_windows: int, seq_len: int, seed: int) -> list[Example]:
    text = "\n\n".join(held_out_prose())  # a token that ends a turn has no place in it: training moves that one
    stretches, prefix = encode(tokenizer, [text]), prefix_of(tokenizer, text)
    windows = cut_windows(stretches, num_windows=num_windows, seq_len=seq_len, seed=seed, prefix=prefix)
    if windows.shortage:
        raise ValueError(f"held-out English: {windows.shortage}; ask for fewer or shorter windows")
    given = max(1, len(prefix))
    return [said_after(row[:given], row[given:]) for row in windows.input_ids.tolist()]
