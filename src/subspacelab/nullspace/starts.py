"""How every layer of an adapter starts, by its method's rule, and how well B then avoids what the layer is fed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import solve
from subspacelab.core.errors import SettingError
from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import NullSpace, null_ratio, null_space, optimal_ratio, random_ratio, row_space
from subspacelab.linalg.subspaces import principal_angles
from subspacelab.models.lora_factors import Factors
from subspacelab.nullspace.calibration import (
    Moments,
    SharedInput,
    calibrate_inputs,
    in_passes,
    moment_bytes,
    require_enough_tokens,
    shared_inputs,
    split_windows,
)
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.inits import Method

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


@dataclass(frozen=True)
class Task:
    """A base model and what is to be built on it."""

    model: Any
    """The base model."""
    linears: dict[str, nn.Linear]
    """The layers that get an adapter."""
    method: Method
    """How they start."""
    rank: int
    """Rank of each."""
    windows: Windows | None
    """Calibration text; None without calibration."""
    settings: BuildSettings
    """Batch size, and whether few tokens will do."""
    progress: Progress = no_progress
    """Opens its bars."""


def starts(task: Task) -> tuple[dict[str, Factors], list[LayerReport]]:
    """Factors and report of every layer, in the model's order."""
    if task.method.peft_init == "corda":
        _prepare_corda(task)
    found = dict(_calibrated_starts(task) if task.windows else plain_starts(task))
    factors = {name: found[name][0] for name in task.linears}
    return factors, [found[name][1] for name in task.linears]


def plain_starts(task: Task) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """Name, factors and report of every layer, by a method that looks at no inputs."""
    for name, linear in task.linears.items():
        factors = _start(task, linear, None)
        yield name, (factors, report_layer(name, _shape(linear), factors.B, None))


def _calibrated_starts(task: Task) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """One input after the other: its moments are let go before the next one's eigenvectors are asked for."""
    windows = task.windows
    assert windows is not None
    inputs = shared_inputs(task.model, task.linears, windows)
    if not task.settings.allow_few_tokens:
        require_enough_tokens(windows, split_windows(windows), inputs)
    passes = list(in_passes(inputs, moment_bytes(task.model.device)))
    with (
        task.progress("calibrating", len(passes) * len(windows.input_ids), "windows") as advance,
        task.progress("null spaces", len(inputs), "inputs") as solved,
    ):
        for batch in passes:
            moments = calibrate_inputs(task.model, windows, batch, batch_size=task.settings.batch_size, advance=advance)
            for shared in batch:
                yield from input_starts(task, shared, moments.pop(shared.name))
                solved(1)


def input_starts(
    task: Task, shared: SharedInput, moments: Moments
) -> Iterator[tuple[str, tuple[Factors, LayerReport]]]:
    """Name, factors and report of each layer that reads one calibrated input."""

    def spectra(*parts: Tensor) -> tuple[Moments, NullSpace, InputReport]:
        placed = replace(moments, first=parts[0], second=parts[1], held_out=parts[2])
        space = null_space(placed.calibration, task.rank)
        return placed, space, report_input(placed, space)

    placed, space, of_input = solve(spectra, moments.first, moments.second, moments.held_out)
    calibrated = (shared.name, placed.calibration, placed.held_out, of_input)
    for name in shared.modules:
        linear = task.linears[name]
        factors = _start(task, linear, space.basis)
        yield name, (factors, report_layer(name, _shape(linear), factors.B, calibrated))


def _start(task: Task, linear: nn.Linear, basis: Tensor | None) -> Factors:
    """One layer's factors by the method's own start, or PEFT's."""
    from subspacelab.models.lora_factors import peft_start

    method, w = task.method, linear.weight.detach()
    if method.null_start is not None:
        assert basis is not None
        return method.null_start(w, basis)
    if method.weight_start is not None:
        return method.weight_start(w, task.rank)
    a, b = peft_start(linear, task.rank, method.peft_init)
    return Factors(a, b, a, b) if method.moves_weight else Factors(a, b)


def _prepare_corda(task: Task) -> None:
    """PEFT's pre-processing of CorDA over the same calibration windows, one at a time, as its hooks need."""
    from subspacelab.models.causal_lm import trunk_of
    from subspacelab.models.lora_factors import prepare_corda

    windows = task.windows
    assert windows is not None
    numbers = split_windows(windows).calibration

    def run() -> None:
        for number in numbers:
            ids = windows.input_ids[number][windows.attention_mask[number]]
            trunk_of(task.model)(input_ids=ids[None].to(task.model.device), use_cache=False)

    prepare_corda(task.model, list(task.linears), task.rank, run)


def _shape(linear: nn.Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features


def require_rank(rank: int, linears: Mapping[str, nn.Linear], method: Method) -> None:
    """ValueError for a rank that a layer does not have, and for a weight that would be moved twice."""
    if rank < 1:
        raise SettingError(f"rank must be at least 1, got {rank}")
    weights: dict[int, str] = {}
    for name, linear in linears.items():
        other = weights.setdefault(id(linear.weight), name)
        if other != name and method.moves_weight:
            raise SettingError(
                f"{other} and {name} share one weight, which would be moved twice; choose another method"
            )
    for name, linear in linears.items():
        sides = {"input": linear.in_features} | ({"output": linear.out_features} if method.moves_weight else {})
        for side, width in sides.items():
            if rank > width:
                raise SettingError(f"rank {rank} is larger than the {side} of {name}, {width}: choose at most {width}")
