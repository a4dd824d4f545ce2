"""What a model still knows and has learned, in a few batched passes: scores beside those of its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspacelab.data.windows import Windows
from subspacelab.nullspace.forgetting.probes import Probe
from subspacelab.nullspace.forgetting.tasks import Task, TaskName


@dataclass(frozen=True)
class Materials:
    """Everything that models are scored on."""

    probes: list[Probe]
    """Old knowledge, none of it in a calibration text; `Base.known` tells which of it counts."""
    task: Task
    """The new one: `task.train` is what models are trained on."""
    windows: Windows
    """Held-out English."""


@dataclass(frozen=True)
class Scores:
    """One model's."""

    task: float
    """Share of the test problems whose whole greedy answer is right."""
    validation: float
    """The same of the validation problems, by which a rate is chosen."""
    recall: float
    """Share of the base's known probes that are answered exactly."""
    recall_ranked: float
    """Their mean rank score: 1 where the right answer is the likeliest of its kind, 0 where it is the least likely."""
    ce: float
    """Cross-entropy on held-out English, nats a token."""
    delta_ce: float
    """ce minus the base's."""
    kl_old: float
    """KL(base || model) on the answers of the known probes, nats a token."""
    kl_new: float
    """KL(base || model) on the responses of the test problems, nats a token."""
    recall_by_kind: dict[str, float]
    """recall of each kind of probe."""
    recall_ranked_by_kind: dict[str, float]
    """recall_ranked of each kind."""


@dataclass(frozen=True)
class Base:
    """What the base says: its own scores, which probes it knows, and its probabilities, to which models are compared."""

    scores: Scores
    """delta_ce and both KL are 0."""
    known: list[int]
    """Places in `Materials.probes` of those that it answers exactly or ranks first."""

    def save(self, path: Path) -> None:
        """Writes one .safetensors file, atomically."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path) -> "Base":
        """Reads it back; ValueError names a file that is not one."""
        raise NotImplementedError


def read_materials(
    tokenizer: Any,
    task: TaskName,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    num_windows: int,
    seq_len: int,
    seed: int,
) -> Materials:
    """Probes, problems (drawn from `seed`) and windows of held-out English, encoded by `tokenizer`."""
    raise NotImplementedError


def base_record(model: Any, materials: Materials, *, batch_size: int) -> Base:
    """Asks the base everything, once."""
    raise NotImplementedError


def score(model: Any, materials: Materials, base: Base, *, batch_size: int) -> Scores:
    """Scores a model, plain or with an adapter of PEFT on it, in evaluation mode and put back afterwards."""
    raise NotImplementedError
