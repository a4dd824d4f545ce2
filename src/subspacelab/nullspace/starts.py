"""The start of every layer by its method, and how well B then avoids the layer's inputs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.core.devices import solve
from subspacelab.core.errors import SettingError
from subspacelab.linalg.null_space import NullSpace, null_ratio, random_ratio, row_space
from subspacelab.linalg.subspaces import principal_angles
from subspacelab.models.lora_factors import Factors
from subspacelab.nullspace.calibration import Moments, SharedInput
from subspacelab.nullspace.inits import Method
from subspacelab.nullspace.spectra import null_space, optimum

MEASURES = (
    *("BX_ratio", "BX_ratio_held_out", "optimum", "optimum_held_out", "random"),
    *("halves_angle_max", "halves_angle_mean", "gap"),
)
"""The numbers of a layer that are drawn as curves and averaged."""


@dataclass(frozen=True)
class InputReport:
    """One distinct input: its spectrum, and how well it determines its null space."""

    num_tokens: int
    """Number of calibration tokens."""
    num_held_out: int
    """Number of held-out tokens."""
    optimum: float
    """Smallest ratio of any B of this rank on the calibration tokens."""
    optimum_held_out: float
    """Smallest ratio of any B of this rank on the held-out tokens."""
    random: float
    """sqrt(r / d): the ratio of a random B."""
    gap: float | None
    """Eigenvalue r + 1 over eigenvalue r, ascending; None if the latter is 0, or if r is the whole space."""
    numerical_rank: int
    """Number of directions with energy above rounding."""
    num_clamped: int
    """Number of eigenvalues set to 0 because they are rounding, some of them negative."""
    halves_angle_max: float
    """Largest principal angle, in degrees, between the null spaces of the two halves of the calibration."""
    halves_angle_mean: float
    """Mean of these angles."""


@dataclass(frozen=True)
class LayerReport:
    """One layer's adapter, with the report of its input."""

    module: str
    """Name of the layer in the model."""
    kind: str
    """Last part of its name, such as q_proj."""
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
    """||Q X||_F / ||X||_F on the calibration tokens, Q an orthonormal basis of B's rows; None if not calibrated."""
    BX_ratio_held_out: float | None
    """The same on the held-out tokens."""
    of_input: InputReport | None
    """Report of its input; None if not calibrated."""

    def as_json(self) -> dict[str, Any]:
        """One flat mapping."""
        own = asdict(self)
        return own | (own.pop("of_input") or {})

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "LayerReport":
        """The inverse of `asdict`."""
        of_input = fields["of_input"]
        return cls(**{**fields, "of_input": of_input and InputReport(**of_input)})


def report_input(moments: Moments, space: NullSpace) -> InputReport:
    """The report of one input: four eigendecompositions, that of `space` included, one matrix in memory at a time."""
    rank, dim = space.basis.shape
    halves = (lambda: moments.first, lambda: moments.second)
    bases = [solve(partial(null_space, rank=rank), half()).basis for half in halves]
    angles = principal_angles(bases[0].T, bases[1].T).rad2deg()
    return InputReport(
        num_tokens=moments.num_tokens,
        num_held_out=moments.num_held_out,
        optimum=space.optimum,
        optimum_held_out=solve(partial(optimum, rank=rank), moments.held_out),
        random=random_ratio(rank, dim),
        gap=space.gap if math.isfinite(space.gap) else None,
        numerical_rank=space.numerical_rank,
        num_clamped=space.num_clamped,
        halves_angle_max=angles.max().item(),
        halves_angle_mean=angles.mean().item(),
    )


def report_layer(
    module: str, shape: tuple[int, int], b: Float[Tensor, "r in"], calibrated: tuple[str, InputReport] | None = None
) -> LayerReport:
    """The report of one layer of `shape` [out, in], which reads the named input; its ratios are not measured yet."""
    name, of_input = calibrated or (module, None)
    parts = module.split(".")
    index = next((int(part) for part in parts if part.isdigit()), 0)
    return LayerReport(module, parts[-1], index, name, shape[1], shape[0], len(b), None, None, of_input)


def measure(
    found: dict[str, tuple[Factors, LayerReport]], moments: Moments
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """The layers of one input with the ratios of B in its stored precision."""
    place = moments.sums[0].device
    rows = {name: row_space(factors.B.to(place)) for name, (factors, _) in found.items()}
    ratios = []
    for matrix in (lambda: moments.calibration, lambda: moments.held_out):
        c = matrix()
        ratios.append({name: null_ratio(c, q) for name, q in rows.items()})
        del c
    for name, (factors, report) in found.items():
        yield name, (factors, replace(report, BX_ratio=ratios[0][name], BX_ratio_held_out=ratios[1][name]))


def summarise(layers: Sequence[LayerReport]) -> dict[str, float]:
    """Means over the layers of every measure that exists."""
    rows = [layer.as_json() for layer in layers]
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in MEASURES}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def plain_starts(
    linears: Mapping[str, nn.Linear], method: Method, rank: int
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """Name, factors and report of every layer, by a method that uses no inputs."""
    for name, linear in linears.items():
        factors = _start(linear, method, rank, None)
        yield name, (factors, report_layer(name, _shape(linear), factors.B))


def input_starts(
    linears: Mapping[str, nn.Linear], method: Method, rank: int, shared: SharedInput, moments: Moments
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """Name, factors and report of each layer that reads one calibrated input."""
    space = solve(partial(null_space, rank=rank), moments.calibration)
    calibrated = (shared.name, report_input(moments, space))
    found = {}
    for name in shared.modules:
        factors = _start(linears[name], method, rank, space.basis)
        found[name] = (factors, report_layer(name, _shape(linears[name]), factors.B, calibrated))
    yield from measure(found, moments)


def _start(linear: nn.Linear, method: Method, rank: int, basis: Tensor | None) -> Factors:
    """One layer's factors by the method's own initialisation, or by PEFT's."""
    from subspacelab.models.lora_factors import peft_start

    w = linear.weight.detach()
    if method.null_start is not None:
        assert basis is not None
        return method.null_start(w, basis)
    if method.weight_start is not None:
        return method.weight_start(w, rank)
    a, b = peft_start(linear, rank, method.peft_init)
    return Factors(a, b, a, b) if method.moves_weight else Factors(a, b)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def require_rank(rank: int, linears: Mapping[str, nn.Linear], method: Method) -> None:
    """ValueError for a rank that a layer does not have, and for a weight that two layers would change."""
    if rank < 1:
        raise SettingError(f"rank must be at least 1, got {rank}")
    weights: dict[int, str] = {}
    for name, linear in linears.items():
        other = weights.setdefault(id(linear.weight), name)
        if other != name and method.moves_weight:
            raise SettingError(
                f"{other} and {name} share one weight, which would be changed twice; choose another method"
            )
    for name, linear in linears.items():
        sides = {"input": linear.in_features} | ({"output": linear.out_features} if method.moves_weight else {})
        for side, width in sides.items():
            if rank > width:
                raise SettingError(f"rank {rank} is larger than the {side} of {name}, {width}: choose at most {width}")
