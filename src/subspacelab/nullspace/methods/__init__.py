"""The methods by name: how each starts an adapter on one matrix, what it needs, what then trains."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from subspacelab.models.lora_factors import Factors
from subspacelab.nullspace.methods.frozen_random import random_rows
from subspacelab.nullspace.methods.milora import minor_components
from subspacelab.nullspace.methods.projected import projected_start
from subspacelab.nullspace.methods.zero import zero_start

NullStart = Callable[[Float[Tensor, "out in"], Float[Tensor, "r in"]], Factors]
"""From a weight W and the null basis of its inputs to the factors at the start."""
WeightStart = Callable[[Float[Tensor, "out in"], int], Factors]
"""From a weight W and the rank to the factors at the start; chance is torch's global generator."""


@dataclass(frozen=True)
class Method:
    """One way to build an adapter."""

    summary: str
    """What it starts from, in words."""
    needs_calibration: bool
    """Whether its start depends on calibration inputs."""
    down_frozen: bool
    """Whether B stays as it was built and only A trains."""
    moves_weight: bool
    """Whether W_res differs from W at the start; then the rank must not exceed the outputs either."""
    null_start: NullStart | None = None
    """Our start from the null basis."""
    weight_start: WeightStart | None = None
    """Our start without inputs."""
    peft_init: bool | str = True
    """PEFT's `init_lora_weights`, for methods with neither."""
    default_weight_decay: float = 0.0
    """Weight decay of its training unless told otherwise."""


METHODS: dict[str, Method] = {
    "lora_null_v2": Method("A = 0, B the null basis; A trains", True, True, False, zero_start),
    "lora_null_v2_projected": Method("factors of W N N^T; A trains", True, True, True, projected_start),
    "lora_null_v1": Method("factors of W N N^T; A and B train", True, False, True, projected_start),
    "frozen_random": Method(
        "A = 0, B random orthonormal rows; A trains: the freeze without the null space",
        *(False, True, False),
        weight_start=random_rows,
    ),
    "lora": Method("A = 0, B random; both train", False, False, False),
    "lora_decay": Method(
        "lora, trained with weight decay 0.3: the honest rival", False, False, False, default_weight_decay=0.3
    ),
    "pissa": Method("top singular triples of W; both train", False, False, True, peft_init="pissa"),
    "corda": Method("svd(W C) C^-1, its end (kpm); both train", True, False, True, peft_init="corda"),
    "milora": Method("bottom singular triples of W; both train", False, False, True, weight_start=minor_components),
}
"""The methods, the default first."""


def method_of(name: str) -> Method:
    """The method of that name; a ValueError lists those there are."""
    if name not in METHODS:
        raise ValueError(f"method={name!r}: allowed are {', '.join(METHODS)}")
    return METHODS[name]
