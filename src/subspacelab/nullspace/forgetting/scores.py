"""What a model has learned and what it still knows, beside its base: a few batched passes, nothing is generated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.checkpoints import read_tensors, write_tensors
from subspacelab.core.settings import validate
from subspacelab.models.fine_tuning import Example
from subspacelab.models.teacher_forcing import is_greedy, log_prob_of, read_responses, response_of
from subspacelab.nullspace.forgetting.divergence import Predictions, at_tokens, divergence, joined, likeliest
from subspacelab.nullspace.forgetting.materials import Materials
from subspacelab.nullspace.forgetting.recall import Answered, answer_probes


@dataclass(frozen=True)
class Scores:
    """One model's."""

    task: float
    """Share of the test problems whose greedy response is right from its first token to its end."""
    validation: float
    """The same of the validation problems, by which a rate is chosen."""
    recall: float
    """Share of the base's known probes that are answered exactly."""
    recall_ranked: float
    """Their mean rank: 1 where the right answer is the likeliest of its kind, 0 where it is the least likely."""
    recall_first: float
    """Share of them whose right answer is the likeliest of its kind."""
    ce: float
    """Cross-entropy on held-out English, nats a token."""
    delta_ce: float
    """ce minus the base's."""
    kl_old: float
    """KL(base || model) on the answers of the known probes, nats a token (`divergence`)."""
    kl_new: float
    """KL(base || model) on the right responses of the test problems, nats a token."""
    recall_by_kind: dict[str, float]
    """recall of each kind of probe."""
    recall_ranked_by_kind: dict[str, float]
    """recall_ranked of each kind."""


@dataclass(frozen=True)
class BaseRecord:
    """What models are compared with."""

    scores: Scores
    """The base's own; delta_ce and both KL are 0."""
    known: list[int]
    """Places in `Materials.probes` of those that it answers exactly or ranks first."""
    old: Predictions
    """At the answers of the known probes."""
    new: Predictions
    """At the responses of the test problems."""
    materials: str
    """Fingerprint of the materials."""

    def save(self, path: Path) -> None:
        """Writes one .safetensors file, atomically."""
        tensors = {f"{name}.{key}": t for name in ("old", "new") for key, t in vars(getattr(self, name)).items()}
        facts = {"scores": asdict(self.scores), "known": self.known, "materials": self.materials}
        write_tensors(path, tensors, ("base", json.dumps(facts)))

    @classmethod
    def load(cls, path: Path) -> "BaseRecord":
        """Reads it back; ValueError names a file that is not one."""
        tensors, metadata = read_tensors(path)
        try:
            facts = json.loads(metadata["base"])
            old, new = (Predictions(tensors[f"{n}.tokens"], tensors[f"{n}.log_probs"]) for n in ("old", "new"))
            scores = validate(Scores, facts["scores"], where=f"{path}: scores")
            return cls(scores=scores, known=facts["known"], old=old, new=new, materials=facts["materials"])
        except (KeyError, TypeError, json.JSONDecodeError) as e:
            raise ValueError(f"{path}: not a base's record ({e!r}); remove it, and it is made again") from e


def base_record(model: Any, materials: Materials, *, max_probes: int | None, batch_size: int) -> BaseRecord:
    """Asks the base everything, once. Of the probes that it knows, at most `max_probes` are kept, evenly.

    ValueError when it knows none.
    """
    answered = answer_probes(model, materials, range(len(materials.probes)), batch_size=batch_size)
    known = _thinned([i for i, found in enumerate(answered) if found.exact or found.rank_score == 1], max_probes)
    if not known:
        raise ValueError(f"the base knows none of {len(answered)} probes; nothing can be forgotten: take another model")
    read = _read(model, materials, known, None, batch_size)
    return BaseRecord(_scores(read, materials, known, None), known, read.old, read.new, materials.fingerprint)


def score(model: Any, materials: Materials, base: BaseRecord, *, batch_size: int) -> Scores:
    """Scores a model, plain or with an adapter of PEFT on it; ValueError for a base of other materials."""
    if base.materials != materials.fingerprint:
        raise ValueError("this base's record is of other probes, problems or text; make it again (base_record)")
    return _scores(_read(model, materials, base.known, base, batch_size), materials, base.known, base)


@dataclass(frozen=True)
class _Read:
    """What the passes give."""

    answered: list[Answered]
    old: Predictions
    test: list[bool]
    new: Predictions
    validation: list[bool]
    ce: float


def _read(model: Any, materials: Materials, known: Sequence[int], base: BaseRecord | None, batch_size: int) -> _Read:
    test_rows, pad = materials.test_rows, materials.pad
    old = _Kept([materials.probe_rows[i] for i in known], base.old if base else None)
    new = _Kept(test_rows, base.new if base else None)
    answered = answer_probes(model, materials, known, batch_size=batch_size, see=old.see)
    test = []
    for i, found in read_responses(model, test_rows, pad=pad, batch_size=batch_size):
        test.append(is_greedy(found, _said(test_rows[i])))
        new.see(i, found)
    validation = [
        is_greedy(found, _said(materials.validation_rows[i]))
        for i, found in read_responses(model, materials.validation_rows, pad=pad, batch_size=batch_size)
    ]
    return _Read(
        answered, old.joined(), test, new.joined(), validation, _cross_entropy(model, materials, -(-batch_size // 8))
    )


def _cross_entropy(model: Any, materials: Materials, batch_size: int) -> float:
    """Nats a token on the windows: a window has many times a problem's tokens, and so smaller batches."""
    total, count = 0.0, 0
    for i, found in read_responses(model, materials.window_rows, pad=materials.pad, batch_size=batch_size):
        said = _said(materials.window_rows[i])
        total, count = total - log_prob_of(found, said), count + len(said)
    return total / count


class _Kept:
    """Gathers, row by row, what is kept of a base, or of a model at the base's tokens."""

    def __init__(self, rows: Sequence[Example], base: Predictions | None) -> None:
        lengths = [len(response_of(row)) for row in rows]
        self._tokens = base.tokens.split(lengths) if base else None
        self._found: dict[int, Predictions] = {}

    def see(self, i: int, log_probs: Tensor) -> None:
        self._found[i] = likeliest(log_probs) if self._tokens is None else at_tokens(log_probs, self._tokens[i])

    def joined(self) -> Predictions:
        return joined([self._found[i] for i in sorted(self._found)])


def _said(row: Example) -> Tensor:
    return torch.tensor(response_of(row))


def _scores(read: _Read, materials: Materials, known: Sequence[int], base: BaseRecord | None) -> Scores:
    kinds = [materials.probes[i].kind for i in known]
    exact, ranks = [a.exact for a in read.answered], [a.rank_score for a in read.answered]
    return Scores(
        task=_mean(read.test),
        validation=_mean(read.validation),
        recall=_mean(exact),
        recall_ranked=_mean(ranks),
        recall_first=_mean([rank == 1 for rank in ranks]),
        ce=read.ce,
        delta_ce=read.ce - base.scores.ce if base else 0.0,
        kl_old=divergence(base.old, read.old) if base else 0.0,
        kl_new=divergence(base.new, read.new) if base else 0.0,
        recall_by_kind=_by_kind(kinds, exact),
        recall_ranked_by_kind=_by_kind(kinds, ranks),
    )


def _by_kind(kinds: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    found: Mapping[str, list[float]] = {kind: [] for kind in kinds}
    for kind, value in zip(kinds, values, strict=True):
        found[kind].append(value)
    return {kind: _mean(of_kind) for kind, of_kind in found.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _thinned(places: list[int], most: int | None) -> list[int]:
    """At most `most` of them, evenly."""
    if most is None or most >= len(places):
        return places
    return [places[i * len(places) // most] for i in range(most)]
