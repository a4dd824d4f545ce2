"""What goes into the linear layers: second moments streamed over windows of real text, and a few tokens as they are."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subspacelab.core.callbacks import Advance
from subspacelab.core.devices import float64_place
from subspacelab.data.windows import Windows
from subspacelab.linalg.moments import SecondMoment
from subspacelab.models.causal_lm import trunk_of

TOKENS_PER_DIM = 8
"""Below it the bottom space is the sample's, not the population's: at N = d its ratio in sample is 0 for any input."""
HELD_OUT = 8
"""One window in so many is kept out of the calibration."""
CPU_BYTES = 4 << 30
"""Moments held at one time on the CPU, and half of what is free on a GPU; more inputs take further passes."""


@dataclass(frozen=True)
class SharedInput:
    """One distinct input and the linear layers that read it: q, k, v share one, gate and up another."""

    modules: tuple[str, ...]
    """Names of the layers, in the model's order."""
    width: int
    """Dimensions d of the input."""

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.modules[0]


@dataclass(frozen=True)
class Split:
    """Window numbers for each purpose."""

    first: list[int]
    """One half of the calibration."""
    second: list[int]
    """The other half: do both find the same null space?"""
    held_out: list[int]
    """Never calibrated on: the ratio out of sample."""

    @property
    def calibration(self) -> list[int]:
        """Both halves."""
        return self.first + self.second


@dataclass(frozen=True)
class Moments:
    """Second moments of one input, float64, not centred."""

    first: Float[Tensor, "dim dim"]
    """Of the first half of the calibration windows."""
    second: Float[Tensor, "dim dim"]
    """Of the second half."""
    held_out: Float[Tensor, "dim dim"]
    """Of the windows kept out."""
    num_tokens: int
    """Tokens of both halves."""
    num_held_out: int
    """Tokens of the windows kept out."""

    @property
    def calibration(self) -> Float[Tensor, "dim dim"]:
        """Of both halves together."""
        return self.first + self.second

    def to(self, device: torch.device) -> "Moments":
        """The same on `device`."""
        first, second, held_out = (part.to(device) for part in (self.first, self.second, self.held_out))
        return replace(self, first=first, second=second, held_out=held_out)


def split_windows(windows: Windows) -> Split:
    """Every eighth window is held out (at least one), the others go to the halves by turns; three are needed."""
    total = len(windows.input_ids)
    if total < 3:
        remedy = "shorten --seq-len or give a longer text" if windows.shortage else "raise --calib-loader-size"
        given = "the text gives" if windows.shortage else "asked for are"
        raise ValueError(f"calibration needs at least 3 windows (two halves, one held out), {given} {total}: {remedy}")
    num_held_out = max(1, total // HELD_OUT)
    kept = list(range(total - num_held_out))
    return Split(kept[::2], kept[1::2], list(range(len(kept), total)))


def require_enough_tokens(windows: Windows, split: Split, inputs: Sequence[SharedInput]) -> None:
    """ValueError unless the calibration has at least 8 tokens for each dimension of the widest input."""
    widest = max(inputs, key=lambda shared: shared.width)
    found, needed = int(windows.attention_mask[split.calibration].sum()), TOKENS_PER_DIM * widest.width
    if found < needed:
        remedy = "Give a longer text" if windows.shortage else "Raise --calib-loader-size or --seq-len"
        raise ValueError(
            f"{found} calibration tokens for {widest.name}, {widest.width} dimensions wide: {needed} are needed"
            f" ({TOKENS_PER_DIM} per dimension). {remedy}, or insist with --allow-few-tokens"
        )


@torch.no_grad()
def shared_inputs(model: nn.Module, linears: Mapping[str, nn.Linear], windows: Windows) -> list[SharedInput]:
    """Which layers are handed the very same tensor, found in a forward pass of a few tokens.

    ValueError for a layer that never runs.
    """
    # Holds the tensors, so that no two of them share an address. The version tells a tensor from itself before
    # something in between changed it in place.
    seen: dict[str, tuple[Tensor, int]] = {}
    ids, mask = windows.input_ids[:1, :2], windows.attention_mask[:1, :2]
    with inputs_to(linears, lambda name, x: seen.setdefault(name, (x, x._version))):
        run_trunk(model, ids, mask)
    unused = [name for name in linears if name not in seen]
    if unused:
        raise ValueError(f"{unused[0]} takes no part in a forward pass ({len(unused)} such); leave it out by --targets")
    readers: dict[tuple[int, int, int], list[str]] = {}
    for name in linears:
        x, version = seen[name]
        readers.setdefault((x.shape[-1], x.data_ptr(), version), []).append(name)
    return [SharedInput(tuple(names), width) for (width, *_), names in readers.items()]


def moment_bytes(device: torch.device) -> int:
    """Memory for moments: half of what is free on a GPU, 4 GiB elsewhere."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_BYTES


def in_passes(inputs: Sequence[SharedInput], max_bytes: int) -> Iterator[list[SharedInput]]:
    """Consecutive inputs whose moments fit into `max_bytes` together; one that does not fit stands alone."""
    batch: list[SharedInput] = []
    for shared in inputs:
        if batch and sum(map(_moment_bytes, [*batch, shared])) > max_bytes:
            yield batch
            batch = []
        batch.append(shared)
    yield batch


@torch.inference_mode()
def calibrate_inputs(
    model: Any,
    windows: Windows,
    inputs: Sequence[SharedInput],
    *,
    batch_size: int = 8,
    advance: Advance = lambda _: None,
) -> dict[str, Moments]:
    """One pass over the windows: the name of each of `inputs` -> its moments, on the model's device.

    Padding never enters. `advance` is told the number of windows done. ValueError, naming the layer, for NaN or
    infinity in an activation, and for a layer that does not see every token.
    """
    split = split_windows(windows)
    place = float64_place(model.device)
    sums = {shared.name: [SecondMoment(shared.width, place) for _ in range(3)] for shared in inputs}
    linears = {shared.name: model.get_submodule(shared.name) for shared in inputs}
    for part, numbers in enumerate((split.first, split.second, split.held_out)):
        for batch in torch.tensor(numbers).split(batch_size):
            mask = windows.attention_mask[batch]

            def add(name: str, x: Tensor, mask: Tensor = mask, part: int = part) -> None:
                sums[name][part].add(_tokens(name, x, mask))

            with inputs_to(linears, add):
                run_trunk(model, windows.input_ids[batch], mask)
            advance(len(batch))
    return {name: _finish(name, parts) for name, parts in sums.items()}


def _tokens(name: str, x: Tensor, mask: Bool[Tensor, "batch length"]) -> Float[Tensor, "tokens dim"]:
    """The rows of an input, [batch length dim] or [batch * length dim], that are no padding."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) != mask.numel():
        raise ValueError(f"{name} sees {len(flat)} of {mask.numel()} tokens; leave it out by --targets")
    return flat[mask.flatten().to(flat.device)]


def _finish(name: str, parts: list[SecondMoment]) -> Moments:
    first, second, held_out = (part.matrix() for part in parts)
    if not all(torch.isfinite(c.diagonal()).all() for c in (first, second, held_out)):
        raise ValueError(f"{name}: NaN or infinity among its inputs; the checkpoint is damaged or its dtype too narrow")
    return Moments(first, second, held_out, parts[0].num_tokens + parts[1].num_tokens, parts[2].num_tokens)


@contextmanager
def inputs_to(linears: Mapping[str, nn.Module], take: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Calls `take(name, input)` whenever one of the layers runs, within the block."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            take(name, arguments[0])

        return hook

    hooks = [module.register_forward_pre_hook(hook_of(name)) for name, module in linears.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_trunk(model: Any, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> None:
    """The model without its head: no logits are wanted."""
    device = model.device
    trunk_of(model)(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False)


def _moment_bytes(shared: SharedInput) -> int:
    return 3 * 8 * shared.width**2


@dataclass(frozen=True)
class Inputs:
    """Of one distinct input."""

    sample: Float[Tensor, "samples dim"]
    """The tokens that were chosen."""
    first: Float[Tensor, "windows dim"]
    """The first token of each window: the begin token where the tokenizer has one, which attention uses as a sink."""
    moment: Float[Tensor, "dim dim"] | None
    """X^T X over all tokens, float64; None if it was not asked for."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Module that reads this input -> ||Q X||_F / ||X||_F over all tokens, for each Q that was given."""


def choose_tokens(mask: Bool[Tensor, "n length"], num_samples: int, seed: int) -> Bool[Tensor, "n length"]:
    """Marks `num_samples` tokens: as many from each window as from the others (to one), anywhere in it, no padding.

    A window that is too short gives what it has. The first tokens of the first window, the sink among them, would
    say little of all the others.
    """
    if num_samples < 1:
        raise ValueError(f"max_activation_samples: {num_samples} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    share, extra = divmod(num_samples, len(mask))
    favoured = torch.randperm(len(mask), generator=generator)[:extra].tolist()
    chosen = torch.zeros_like(mask)
    for i, row in enumerate(mask):
        places = row.nonzero().flatten()
        picked = torch.randperm(len(places), generator=generator)[: share + (i in favoured)]
        chosen[i, places[picked]] = True
    return chosen


@torch.inference_mode()
def collect_inputs(
    model: Any,
    layers: Mapping[str, nn.Module],
    windows: Windows,
    chosen: Bool[Tensor, "n length"],
    *,
    moments: bool = False,
    bases: Mapping[str, Mapping[str, Float[Tensor, "r dim"]]] | None = None,
    batch_size: int,
    advance: Advance = lambda _: None,
) -> dict[str, Inputs]:
    """Runs the windows through the model and keeps of each layer's input what `Inputs` says; padding never enters.

    `bases` holds, for an input's name, modules and the orthonormal rows Q whose ratios are wanted.
    """
    seen: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {name: [] for name in layers}
    first: dict[str, list[Tensor]] = {name: [] for name in layers}
    sums: dict[str, SecondMoment] = {}
    whole: dict[str, float] = defaultdict(float)  # ||X||_F^2 of an input
    inside: dict[str, float] = defaultdict(float)  # ||Q X||_F^2 of a module
    bases = bases or {}
    with inputs_to(layers, seen.__setitem__):
        for rows in torch.arange(len(windows.input_ids)).split(batch_size):
            mask = windows.attention_mask[rows].to(model.device)
            run_trunk(model, windows.input_ids[rows], mask)
            for name, given in seen.items():
                x = given.view(*mask.shape, -1)
                samples[name].append(x[chosen[rows].to(x.device)].cpu())
                first[name].append(x[torch.arange(len(x)), mask.int().argmax(1)].cpu())
                place = float64_place(x.device)
                if moments:
                    sums.setdefault(name, SecondMoment(x.shape[-1], place)).add(x[mask])
                if name in bases:
                    tokens = x[mask].to(place).double()
                    whole[name] += tokens.square().sum().item()
                    for module, q in bases[name].items():
                        inside[module] += (tokens @ q.to(place).T).square().sum().item()
            advance(len(rows))
    return {
        name: Inputs(
            torch.cat(samples[name]),
            torch.cat(first[name]),
            sums[name].matrix() if moments else None,
            {module: math.sqrt(inside[module] / (whole[name] or 1)) for module in bases.get(name, ())},
        )
        for name in layers
    }
