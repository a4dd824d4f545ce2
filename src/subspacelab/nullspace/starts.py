"""How every layer of an adapter starts: by the method's own rule, from calibration where it asks for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import solve
from subspacelab.core.errors import SettingError
from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import NullSpace, null_space
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
from subspacelab.nullspace.layer_report import InputReport, LayerReport, report_input, report_layer


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
