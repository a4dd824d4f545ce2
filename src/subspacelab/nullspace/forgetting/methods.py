"""The rivals: how each is put on a model, at which learning rates it is tried, and what else its training does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from subspacelab.models.trainables import Base, Trainable, adapted, by_peft, mica, oft, oplora, osf, whole
from subspacelab.nullspace.forgetting.texts import CalibrationKind

MLP = ("mlp",)
"""Finds the feed-forward layers of the families that transformers calls so: Llama, Qwen, Gemma, Mistral, GPT-NeoX."""
KEPT = 128
"""Top singular triples of each weight that OPLoRA keeps."""

Put = Callable[[Base, Path, int, int], Trainable]
"""(base, folder of the adapter that was built, rank, seed) -> what trains."""


def _adapted(base: Base, adapter: Path, rank: int, seed: int) -> Trainable:
    return adapted(base, adapter)


@dataclass(frozen=True)
class Rival:
    """One way to fine-tune."""

    summary: str
    """In words."""
    rate: float
    """The middle of its learning rates, AdamW's peak."""
    adapter: str | None = None
    """The method of `nullspace.inits` that its adapter is built by; None where none is."""
    put: Put = _adapted
    """How it is put on the base."""
    rank: int | None = None
    """Its own rank; None takes the study's."""
    targets: tuple[str, ...] | None = None
    """Regular expressions of the layers that its adapter is on; None takes all but the head."""
    calibration: CalibrationKind = "prose"
    """What text it is calibrated on, where it is."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    penalised: bool = False
    """Whether the divergence from the base is added to its loss."""
    float32: bool = False
    """Whether weights of the base train, whose steps are smaller than bfloat16 can tell apart."""


def _from(adapter: str, summary: str, rate: float, **others: object) -> Rival:
    return Rival(summary, rate, adapter, **others)  # type: ignore[arg-type]


RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "lora": _from("lora", "LoRA on all layers", 1e-3),
        "lora_r8": _from("lora", "LoRA of rank 8 on all layers", 1e-3, rank=8),
        "lora_mlp": _from("lora", "LoRA of rank 10 on the feed-forward layers", 1e-3, rank=10, targets=MLP),
        "lora_decay": _from("lora", "LoRA with weight decay 0.3", 1e-3, weight_decay=0.3),
        "lora_kl": _from("lora", "LoRA with the divergence from the base in its loss", 1e-3, penalised=True),
        "full": Rival("all adaptable weights train", 1e-4, put=lambda base, *_: whole(base), float32=True),
        "pissa": _from("pissa", "PiSSA: LoRA from the top singular triples", 5e-4),
        "milora": _from("milora", "MiLoRA: LoRA from the bottom singular triples", 1e-3),
        "corda": _from("corda", "CorDA: LoRA from the directions that calibration inputs use least", 1e-3),
        "oplora": _from(
            "lora",
            "LoRA outside the top singular triples",
            1e-3,
            put=lambda base, adapter, *_: oplora(base, adapter, KEPT),
        ),
        "mica": Rival(
            "A of LoRA trains; B frozen at the bottom left singular vectors",
            2e-3,
            put=lambda base, _, rank, seed: by_peft(base, partial(mica, rank=rank), seed),
        ),
        "oft": Rival(
            "inputs turned by a block-diagonal orthogonal matrix",
            2e-3,
            put=lambda base, _, rank, seed: by_peft(base, partial(oft, rank=rank), seed),
        ),
        "osf": Rival(
            "the lower half of the singular triples trains, orthogonally to the upper",
            1e-4,
            put=lambda base, _, rank, seed: by_peft(base, partial(osf, rank=rank), seed),
            float32=True,
        ),
        "frozen_random": _from("frozen_random", "A trains; B frozen at random: no null space", 2e-3),
        "lora_null_v1": _from("lora_null_v1", "LoRA-Null v1: A and B train from the null space", 1e-3),
        "lora_null_v2": _from("lora_null_v2", "LoRA-Null v2: A trains; B frozen in the null space", 3e-3),
        "lora_null_v2_projected": _from("lora_null_v2_projected", "LoRA-Null v2 as published, with W projected", 3e-3),
        "lora_null_v2_questions": _from(
            "lora_null_v2",
            "LoRA-Null v2 calibrated on questions and answers, not on prose",
            3e-3,
            calibration="questions",
        ),
    }
)
"""Name -> rival; a study takes those that it names, in its order."""


def rival_of(name: str) -> Rival:
    """The rival of that name; a ValueError lists those there are."""
    if name not in RIVALS:
        raise ValueError(f"method={name!r}: allowed are {', '.join(RIVALS)}")
    return RIVALS[name]
