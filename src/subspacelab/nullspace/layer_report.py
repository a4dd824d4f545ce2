"""What is known of each layer's adapter at the start: how well B avoids what the layer is fed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.linalg.null_space import NullSpace, null_ratio, null_space, optimal_ratio, random_ratio, row_space
from subspacelab.linalg.subspaces import principal_angles
from subspacelab.nullspace.calibration import Moments

MEASURES = (
    *("BX_ratio", "BX_ratio_held_out", "optimum", "optimum_held_out", "random"),
    *("halves_angle_max", "halves_angle_mean", "gap"),
)
"""The numbers of a layer that make curves and means."""


@dataclass(frozen=True)
class InputReport:
    """One distinct input: its spectrum and how well it determines its null space."""

    num_tokens: int
    """Calibration tokens."""
    num_held_out: int
    """Tokens that were kept out."""
    optimum: float
    """Least ratio any B of this rank has on the calibration tokens."""
    optimum_held_out: float
    """Least ratio any B of this rank has on the held-out tokens."""
    random: float
    """sqrt(r / d): the ratio of a random B."""
    gap: float | None
    """Eigenvalue r + 1 over eigenvalue r, from below; None where the latter is 0, or r is the whole space."""
    numerical_rank: int
    """Directions of the input with more than rounding."""
    num_clamped: int
    """Eigenvalues set to 0, some of them negative: rounding."""
    halves_angle_max: float
    """Largest principal angle, in degrees, between the null spaces of the two halves of the calibration."""
    halves_angle_mean: float
    """Mean of these angles."""


@dataclass(frozen=True)
class LayerReport:
    """One layer's adapter, with the report of its input."""

    module: str
    """Its name in the model."""
    kind: str
    """Last part of the name, such as q_proj."""
    index: int
    """Number of its block, the first number in the name; 0 without one."""
    input: str
    """First of the layers that read the same input."""
    in_features: int
    """Width of the input."""
    out_features: int
    """Width of the output."""
    rank: int
    """Rank of the adapter."""
    BX_ratio: float | None
    """||Q X||_F / ||X||_F on the calibration tokens, Q an orthonormal basis of B's rows; None: not calibrated."""
    BX_ratio_held_out: float | None
    """The same on the held-out tokens."""
    of_input: InputReport | None
    """The input's own report; None: not calibrated."""

    def as_json(self) -> dict[str, Any]:
        """One flat mapping."""
        own = asdict(self)
        return own | (own.pop("of_input") or {})


def report_input(moments: Moments, space: NullSpace) -> InputReport:
    """The report of one input; four eigendecompositions of its width, the one of `space` included."""
    rank, dim = space.basis.shape
    bases = [null_space(half, rank).basis for half in (moments.first, moments.second)]
    angles = principal_angles(bases[0].T, bases[1].T).rad2deg()
    return InputReport(
        num_tokens=moments.num_tokens,
        num_held_out=moments.num_held_out,
        optimum=space.optimum,
        optimum_held_out=optimal_ratio(torch.linalg.eigvalsh(moments.held_out), rank),
        random=random_ratio(rank, dim),
        gap=space.gap if math.isfinite(space.gap) else None,
        numerical_rank=space.numerical_rank,
        num_clamped=space.num_clamped,
        halves_angle_max=angles.max().item(),
        halves_angle_mean=angles.mean().item(),
    )


def report_layer(
    module: str,
    shape: tuple[int, int],
    b: Float[Tensor, "r in"],
    calibrated: tuple[str, Tensor, Tensor, InputReport] | None,
) -> LayerReport:
    """The report of one layer of `shape` [out, in]; B as it is stored, not as it was computed.

    `calibrated` holds the input's name, its moments on calibration and held-out tokens, and its report.
    """
    name, of_input = module, None
    ratio: float | None = None
    ratio_held_out: float | None = None
    if calibrated is not None:
        name, seen, held_out, of_input = calibrated
        q = row_space(b.to(seen.device))
        ratio, ratio_held_out = null_ratio(seen, q), null_ratio(held_out, q)
    parts = module.split(".")
    index = next((int(part) for part in parts if part.isdigit()), 0)
    return LayerReport(module, parts[-1], index, name, shape[1], shape[0], len(b), ratio, ratio_held_out, of_input)


def summarise(layers: Sequence[LayerReport]) -> dict[str, float]:
    """Means over the layers of every measure that is there."""
    rows = [layer.as_json() for layer in layers]
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in MEASURES}
    return {name: sum(found) / len(found) for name, found in values.items() if found}
