"""Inputs of the linear layers: second moments, streamed over windows of real text, and a sample of tokens."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subspacelab.core.callbacks import Advance
from subspacelab.core.devices import float64_place, solve
from subspacelab.data.windows import Windows
from subspacelab.linalg.moments import SecondMoment
from subspacelab.models.block_stream import BlockStream
from subspacelab.models.hidden_states import HiddenStates

TOKENS_PER_DIM = 8
"""Fewer tokens per dimension describe the sample, not the population: at N = d the ratio in sample is 0 for any
input."""
HELD_OUT = 8
"""One window in this many is kept out of the calibration."""


@dataclass(frozen=True)
class SharedInput:
    """One distinct input and the linear layers that read it: q, k and v share one, gate and up another."""

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
    """The other half, to test whether both halves give the same null space."""
    held_out: list[int]
    """Windows kept out of the calibration, for the ratio out of sample."""

    @property
    def calibration(self) -> list[int]:
        """Both halves."""
        return self.first + self.second


@dataclass(frozen=True)
class Moments:
    """Second moments of one input, float64, not centred; each matrix is assembled on demand."""

    sums: tuple[SecondMoment, SecondMoment, SecondMoment]
    """Sums over the two halves of the calibration windows and over the held-out windows."""

    @classmethod
    def of(cls, *parts: Float[Tensor, "dim dim"], num_tokens: int, num_held_out: int) -> "Moments":
        """From matrices."""
        first, second, held_out = parts
        counts = (num_tokens, 0, num_held_out)
        one, two, three = (SecondMoment.of(c, n) for c, n in zip((first, second, held_out), counts, strict=True))
        return cls((one, two, three))

    @property
    def first(self) -> Float[Tensor, "dim dim"]:
        """Second moment of the first half of the calibration windows."""
        return self.sums[0].matrix()

    @property
    def second(self) -> Float[Tensor, "dim dim"]:
        """Second moment of the second half."""
        return self.sums[1].matrix()

    @property
    def held_out(self) -> Float[Tensor, "dim dim"]:
        """Second moment of the held-out windows."""
        return self.sums[2].matrix()

    @property
    def calibration(self) -> Float[Tensor, "dim dim"]:
        """Second moment of both halves together."""
        return self.sums[0].matrix(self.sums[1])

    @property
    def num_tokens(self) -> int:
        """Number of tokens in both halves."""
        return self.sums[0].num_tokens + self.sums[1].num_tokens

    @property
    def num_held_out(self) -> int:
        """Number of tokens in the held-out windows."""
        return self.sums[2].num_tokens

    def to(self, device: torch.device) -> "Moments":
        """A copy on `device`."""
        one, two, three = (part.to(device) for part in self.sums)
        return Moments((one, two, three))


def split_windows(windows: Windows) -> Split:
    """Holds out every eighth window (at least one) and halves the others in turn; ValueError for fewer than three."""
    total = len(windows.input_ids)
    if total < 3:
        remedy = "shorten `seq_len` or give a longer text" if windows.shortage else "give more (`calib_loader_size`)"
        given = "the text gives" if windows.shortage else "got"
        raise ValueError(f"calibration needs at least 3 windows (two halves, one held out), {given} {total}: {remedy}")
    num_held_out = max(1, total // HELD_OUT)
    kept = list(range(total - num_held_out))
    return Split(kept[::2], kept[1::2], list(range(len(kept), total)))


def require_enough_tokens(windows: Windows, linears: Mapping[str, nn.Linear]) -> None:
    """ValueError unless the calibration has at least 8 tokens for each dimension of the widest input."""
    name, widest = max(linears.items(), key=lambda item: item[1].in_features)
    found = int(windows.attention_mask[split_windows(windows).calibration].sum())
    needed = TOKENS_PER_DIM * widest.in_features
    if found < needed:
        remedy = (
            "Give a longer text" if windows.shortage else "Give more or longer windows (`calib_loader_size`, `seq_len`)"
        )
        raise ValueError(
            f"{found} calibration tokens for {name}, {widest.in_features} dimensions wide: {needed} are needed"
            f" ({TOKENS_PER_DIM} per dimension). {remedy}, or insist with `allow_few_tokens`"
        )


@torch.no_grad()
def shared_inputs(linears: Mapping[str, nn.Module], run: Callable[[], object]) -> list[SharedInput]:
    """Groups of layers that receive the same tensor when a few tokens `run` through them.

    ValueError for a layer that never runs.
    """
    # Holds the tensors, so that no two of them share an address. The version tells a tensor from itself before
    # something in between changed it in place.
    seen: dict[str, tuple[Tensor, int]] = {}
    with inputs_to(linears, lambda name, x: seen.setdefault(name, (x, x._version))):
        run()
    unused = [name for name in linears if name not in seen]
    if unused:
        raise ValueError(f"{unused[0]} takes no part in a forward pass ({len(unused)} such); leave it out by `targets`")
    readers: dict[tuple[int, int, int], list[str]] = {}
    for name in linears:
        x, version = seen[name]
        readers.setdefault((x.shape[-1], x.data_ptr(), version), []).append(name)
    return [SharedInput(tuple(names), width) for (width, *_), names in readers.items()]


class Batches:
    """Windows in batches that pass through a model block by block, with their states before the current block."""

    def __init__(self, stream: BlockStream, windows: Windows, rows: Sequence[Tensor], states: HiddenStates) -> None:
        self.stream, self.windows = stream, windows
        self.rows = list(rows)
        """Window numbers of each batch."""
        self.states = states
        """Hidden states of the batches."""

    def mask(self, batch: int) -> Bool[Tensor, "batch length"]:
        """True for the tokens of a batch that are not padding."""
        return self.windows.attention_mask[self.rows[batch]]

    def embed(self) -> None:
        """Computes the states before the first block; call it within the stream's `ends`."""
        for batch, rows in enumerate(self.rows):
            self.states.put(batch, self.stream.embed(self.windows.input_ids[rows], self.mask(batch)))
        self.states.advance()

    def run(
        self,
        index: int,
        linears: Mapping[str, nn.Module] | None = None,
        take: Callable[[int, str, Tensor], object] = lambda *_: None,
        advance: Advance = lambda _: None,
    ) -> None:
        """Runs all windows through a block; `take(batch, name, input)` is called whenever one of the layers runs."""
        for batch, rows in enumerate(self.rows):
            with inputs_to(linears or {}, partial(take, batch)):
                self.states.put(batch, self.stream.run(index, self.states.before(batch), self.mask(batch)))
            advance(len(rows))


class CalibrationBatches(Batches):
    """Batches of windows in the order of the split; all windows of a batch belong to one part."""

    def __init__(self, stream: BlockStream, windows: Windows, batch_size: int, states: HiddenStates) -> None:
        split = split_windows(windows)
        parts = [torch.tensor(numbers).split(batch_size) for numbers in (split.first, split.second, split.held_out)]
        super().__init__(stream, windows, [rows for part in parts for rows in part], states)
        self.parts = [number for number, part in enumerate(parts) for _ in part]
        """For each batch: 0 for the first half, 1 for the second, 2 for the held-out windows."""


def calibrate_block(
    batches: CalibrationBatches, index: int, inputs: Sequence[SharedInput], advance: Advance = lambda _: None
) -> dict[str, Moments]:
    """Runs all windows through a block; name of each of its `inputs` -> its moments, on the stream's device.

    Padding is left out. `advance` receives the number of finished windows. ValueError, naming the layer, for NaN or
    infinity in an activation, and for a layer that does not see every token.
    """
    place = float64_place(batches.stream.device)
    sums = {shared.name: [SecondMoment(shared.width, place) for _ in range(3)] for shared in inputs}

    def add(batch: int, name: str, x: Tensor) -> None:
        sums[name][batches.parts[batch]].add(_tokens(name, x, batches.mask(batch)))

    model = batches.stream.model
    batches.run(index, {name: model.get_submodule(name) for name in sums}, add, advance)
    return {name: _finish(name, parts) for name, parts in sums.items()}


def _tokens(name: str, x: Tensor, mask: Bool[Tensor, "batch length"]) -> Float[Tensor, "tokens dim"]:
    """The rows of an input, [batch length dim] or [batch * length dim], that are not padding."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) != mask.numel():
        raise ValueError(f"{name} sees {len(flat)} of {mask.numel()} tokens; leave it out by `targets`")
    return flat[mask.flatten().to(flat.device)]


def _finish(name: str, parts: Sequence[SecondMoment]) -> Moments:
    if not all(torch.isfinite(part.diagonal()).all() for part in parts):
        raise ValueError(f"{name}: NaN or infinity among its inputs; the checkpoint is damaged or its dtype too narrow")
    first, second, held_out = parts
    return Moments((first, second, held_out))


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


@dataclass(frozen=True)
class Inputs:
    """The inputs of one group of layers."""

    sample: Float[Tensor, "samples dim"]
    """The sampled tokens."""
    first: Float[Tensor, "windows dim"]
    """The first token of each window: the tokenizer's begin token if there is one, which attention uses as a sink."""
    moment: Float[Tensor, "dim dim"] | None
    """X^T X over all tokens, float64; None if not requested."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Module that reads this input -> ||Q X||_F / ||X||_F over all tokens, for each given Q."""

    @cached_property
    def eigenvalues(self) -> Float[Tensor, " dim"]:
        """Eigenvalues of the moment, ascending; computed once for all modules that read this input."""
        assert self.moment is not None
        return solve(torch.linalg.eigvalsh, self.moment)


def choose_tokens(mask: Bool[Tensor, "n length"], num_samples: int, seed: int) -> Bool[Tensor, "n length"]:
    """Marks `num_samples` tokens: equally many from each window (up to one), at random positions, without padding.

    A window that is too short contributes all its tokens. Tokens from the start of the first window alone would include
    the attention sink and describe the rest poorly.
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


def collect_block(
    batches: Batches,
    index: int,
    inputs: Sequence[SharedInput],
    chosen: Bool[Tensor, "n length"],
    *,
    moments: bool = False,
    bases: Mapping[str, Mapping[str, Float[Tensor, "r dim"]]] | None = None,
    advance: Advance = lambda _: None,
) -> dict[str, Inputs]:
    """Runs all windows through a block; collects for each of its `inputs` what `Inputs` lists. Padding is left out.

    `bases` maps the name of an input to its modules, each with the orthonormal rows Q whose ratio is wanted.
    """
    names, bases = [shared.name for shared in inputs], bases or {}
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    first: dict[str, list[Tensor]] = {name: [] for name in names}
    sums: dict[str, SecondMoment] = {}
    whole: dict[str, float] = defaultdict(float)  # ||X||_F^2 of an input
    inside: dict[str, float] = defaultdict(float)  # ||Q X||_F^2 of a module

    def take(batch: int, name: str, given: Tensor) -> None:
        rows, mask = batches.rows[batch], batches.mask(batch).to(given.device)
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

    model = batches.stream.model
    batches.run(index, {name: model.get_submodule(name) for name in names}, take, advance)
    return {
        name: Inputs(
            torch.cat(samples[name]),
            torch.cat(first[name]),
            sums[name].matrix() if moments else None,
            {module: math.sqrt(inside[module] / (whole[name] or 1)) for module in bases.get(name, ())},
        )
        for name in names
    }
