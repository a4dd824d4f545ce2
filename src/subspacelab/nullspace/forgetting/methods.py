"""The rivals: how each is put on a model, at which learning rates it is tried, and what else its training does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

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


def _peft(config: Callable[..., Any]) -> Put:
    return lambda base, _, rank, seed: by_peft(base, partial(config, rank=rank), seed)


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


RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        "lora": Rival("LoRA on all layers", 1e-3, "lora"),
        "lora_r8": Rival("LoRA of rank 8 on all layers", 1e-3, "lora", rank=8),
        "lora_mlp": Rival("LoRA of rank 10 on the feed-forward layers", 1e-3, "lora", rank=10, targets=MLP),
        "lora_decay": Rival("LoRA with weight decay 0.3", 1e-3, "lora", weight_decay=0.3),
        "lora_kl": Rival("LoRA with the divergence from the base in its loss", 1e-3, "lora", penalised=True),
        "full": Rival("all adaptable weights train", 1e-4, put=lambda base, *_: whole(base), float32=True),
        "pissa": Rival("PiSSA: LoRA from the top singular triples", 5e-4, "pissa"),
        "milora": Rival("MiLoRA: LoRA from the bottom singular triples", 1e-3, "milora"),
        "corda": Rival("CorDA: LoRA from the directions that calibration inputs use least", 1e-3, "corda"),
        "oplora": Rival(
            "LoRA outside the top singular triples",
            1e-3,
            "lora",
            put=lambda base, adapter, *_: oplora(base, adapter, KEPT),
        ),
        "mica": Rival(
            "A of LoRA trains; B frozen at the bottom left singular vectors",
            2e-3,
            put=_peft(mica),
        ),
        "oft": Rival(
            "inputs turned by a block-diagonal orthogonal matrix",
            2e-3,
            put=_peft(oft),
        ),
        "osf": Rival(
            "the lower half of the singular triples trains, orthogonally to the upper",
            1e-4,
            put=_peft(osf),
            float32=True,
        ),
        "frozen_random": Rival("A trains; B frozen at random: no null space", 2e-3, "frozen_random"),
        "lora_null_v1": Rival("LoRA-Null v1: A and B train from the null space", 1e-3, "lora_null_v1"),
        "lora_null_v2": Rival("LoRA-Null v2: A trains; B frozen in the null space", 3e-3, "lora_null_v2"),
        "lora_null_v2_projected": Rival("LoRA-Null v2 as published, with W projected", 3e-3, "lora_null_v2_projected"),
        "lora_null_v2_questions": Rival(
            "LoRA-Null v2 calibrated on questions and answers, not on prose",
            3e-3,
            "lora_null_v2",
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
