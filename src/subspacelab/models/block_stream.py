"""A causal language model run block by block: of a checkpoint, only one block's weights are in memory at a time.

The other arguments of a block (masks, rotary tables, positions) come from the model's own trunk, which is run with
every block replaced by one that passes the states on. That only hidden states travel from block to block is checked,
not assumed from names; a model for which it is not true is run as one block.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import load_causal_lm, trunk_of
from subspacelab.models.lora_factors import Factors, residual
from subspacelab.models.meta_model import Shards, describe_causal_lm

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types that a block may receive beside tensors, alone or in tuples: no objects that a block could write to."""
PROBE = torch.tensor([[0, 1, 2], [0, 1, 3]])
"""Two short windows that differ only in their last token."""
Mask = Bool[Tensor, "batch length"]
States = Float[Tensor, "batch length dim"]
T = TypeVar("T")


class BlockStream:
    """The blocks of a model in order, each run on given states; made by `stream_of`."""

    def __init__(
        self, model: Any, blocks: Mapping[str, nn.Module], shards: Shards | None, device: torch.device
    ) -> None:
        self.model = model
        """The whole model; for a checkpoint, all but the `loaded` block is on the meta device."""
        self.names = list(blocks)
        """Name of each block within the model."""
        self.device = device
        """Device that the blocks run on."""
        self.note = ""
        """The reason why the model is not run block by block; empty if it is."""
        self._blocks, self._shards = list(blocks.values()), shards
        self._as_tuple = False

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def within(self, index: int, linears: Mapping[str, T]) -> dict[str, T]:
        """The layers that are inside a block."""
        return {name: linear for name, linear in linears.items() if name.startswith(f"{self.names[index]}.")}

    @contextmanager
    def loaded(self, index: int) -> Iterator[None]:
        """Holds a block's weights in memory within the block of code; does nothing for a live model."""
        with self._shards.loaded(self.names[index]) if self._shards else ExitStack():
            yield

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "batch length"], mask: Mask) -> States:
        """The states before the first block; call it within `ends`."""
        return self._reach(0, None, input_ids=ids.to(self.device), attention_mask=self._as_given(mask))[0]

    @torch.no_grad()
    def run(self, index: int, states: States, mask: Mask, *, to_logits: bool = False) -> States:
        """The states after a block, run with the trunk's own arguments; the block must be `loaded`.

        Pass `to_logits` if `logits` will be called.
        """
        states = states.to(self.device)
        _, args, kwargs = self._reach(index, states, inputs_embeds=states, attention_mask=self._as_given(mask))
        out = self._blocks[index](states, *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    @torch.no_grad()
    def logits(self, states: States) -> Float[Tensor, "batch length vocabulary"]:
        """The logits for states after the last block, without padding; call it within `ends`."""
        states = states.to(self.device)
        with self._replaced(lambda _, __, ___: states):
            found: Tensor = self.model(inputs_embeds=states, use_cache=False).logits
        return found

    @contextmanager
    def ends(self) -> Iterator[None]:
        """Holds embeddings and output head in memory within the block of code; blocks do not need them."""
        with self._shards.ends() if self._shards else ExitStack():
            yield

    def _as_given(self, mask: Mask) -> Tensor:
        return mask.long().to(self.device)

    def _reach(
        self, index: int, states: Tensor | None, **inputs: Any
    ) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """The arguments that the trunk passes to a block: states, further arguments, keywords."""

        def answer(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            if number == index:
                raise _Reached(args, kwargs)
            return args[0] if states is None else states

        try:
            with self._replaced(answer):
                trunk_of(self.model)(use_cache=False, **inputs)
        except _Reached as reached:
            return reached.args[0][0], reached.args[0][1:], reached.args[1]
        raise RuntimeError(f"{self.names[index]} takes no part in a forward pass")

    @contextmanager
    def _replaced(self, answer: Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]) -> Iterator[None]:
        """Replaces every block's forward pass by `answer(number, args, kwargs)` within the block of code."""

        def forward_of(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                out = answer(number, args, kwargs)
                return (out,) if self._as_tuple else out

            return forward

        before = [vars(block).get("forward") for block in self._blocks]
        try:
            for number, block in enumerate(self._blocks):
                block.forward = forward_of(number)
            yield
        finally:
            for block, own in zip(self._blocks, before, strict=True):
                del block.forward
                if own is not None:  # such as accelerate's, which moves states between devices
                    block.forward = own

    @torch.no_grad()
    def why_not(self, linears: Mapping[str, nn.Module]) -> str:
        """The reason why the layers cannot be run block by block; empty if they can. Call it within `ends`."""
        outside = linears.keys() - {name for index in range(len(self)) for name in self.within(index, linears)}
        if outside:
            return f"has {min(outside)} outside of its blocks"
        ids = PROBE.to(self.device) % self.model.config.get_text_config().vocab_size
        reasons = []
        for self._as_tuple in (False, True):
            try:
                of_ids, embedded = self._record(0, input_ids=ids)
                others, _ = self._record(1, inputs_embeds=torch.ones_like(embedded))
                reasons.append(self._difference(of_ids, others))
            except Exception as e:  # whatever a trunk raises that is handed other things than its blocks give
                reasons.append(f"does not run with its blocks passed over ({type(e).__name__})")
            if not reasons[-1]:
                return ""
        return reasons[0]

    def _record(self, added: float, **inputs: Any) -> tuple[list[tuple[int, Any, Any]], Tensor]:
        """For each block: number, further arguments, and whether its states are the output of the block before."""
        calls: list[tuple[int, Any, Any]] = []
        given: list[Tensor] = []

        def answer(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
            more = (*args[1:], *sorted(kwargs.items(), key=lambda item: item[0]))
            calls.append((number, more, not given or args[0] is given[-1]))
            given.append(args[0] + added)
            return given[-1]

        with self._replaced(answer):
            trunk_of(self.model)(attention_mask=torch.ones_like(PROBE).to(self.device), use_cache=False, **inputs)
        return calls, given[0]

    def _difference(self, of_ids: list[tuple[int, Any, Any]], others: list[tuple[int, Any, Any]]) -> str:
        for calls in (of_ids, others):
            if [number for number, *_ in calls] != list(range(len(self))):
                return "does not run its blocks one after the other"
            if not all(same for *_, same in calls):
                return "changes the hidden states between its blocks"
        for (number, one, _), (_, two, _) in zip(of_ids, others, strict=True):
            if not _equal(one, two):
                return f"hands {self.names[number]} more than hidden states, masks and positions"
        return ""


class WholeModel(BlockStream):
    """A model as a single block. Its states are token ids, or logits after the block if they are requested."""

    def __init__(self, model: Any, note: str) -> None:
        super().__init__(model, {"": model}, None, model.device)
        self.note = note

    def within(self, index: int, linears: Mapping[str, T]) -> dict[str, T]:
        """All layers: there is only one block."""
        return dict(linears)

    def embed(self, ids: Int[Tensor, "batch length"], mask: Mask) -> Tensor:
        """The token ids, unchanged."""
        return ids.to(self.device)

    @torch.no_grad()
    def run(self, index: int, states: Tensor, mask: Mask, *, to_logits: bool = False) -> Tensor:
        """The token ids again, or the logits."""
        given = {"input_ids": states.to(self.device), "attention_mask": self._as_given(mask), "use_cache": False}
        if to_logits:
            logits: Tensor = self.model(**given).logits
            return logits
        trunk_of(self.model)(**given)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """The logits from `run`."""
        return states


class _Reached(Exception):
    """Stops the trunk's forward pass at the block whose arguments are wanted."""


def _equal(one: Any, two: Any) -> bool:
    """Whether two arguments hold the same plain values and tensors."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and bool(torch.equal(one, two))
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return type(one) is type(two) and isinstance(one, PLAIN) and one == two


def find_blocks(model: Any) -> dict[str, nn.Module]:
    """Name -> block, from the module list in the trunk that holds most parameters; {} if there is no such list."""
    trunk = trunk_of(model)
    lists = {m: name for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    within = [m for m in trunk.modules() if isinstance(m, nn.ModuleList)]
    largest = max(within, key=lambda m: sum(math.prod(p.shape) for p in m.parameters()), default=None)
    return {} if largest is None else {f"{lists[largest]}.{i}": block for i, block in enumerate(largest)}


def stream_of(model: Any, linears: Mapping[str, nn.Module]) -> BlockStream:
    """A live model block by block; as one block if more than hidden states travels between its blocks."""
    stream = BlockStream(model, find_blocks(model), None, model.device)
    reason = stream.why_not(linears)
    return WholeModel(model, f"{type(model).__name__} {reason}; it is run as a whole") if reason else stream


def open_stream(
    folder: Path, *, device: torch.device, targets: Sequence[str] | None = None
) -> tuple[BlockStream, dict[str, nn.Linear]]:
    """The model in a folder, block by block, and its linear layers as `target_linears` finds them.

    Errors as `load_causal_lm`, except that a model with look-ahead attention is detected only when it runs. A model
    that cannot be run block by block is loaded as a whole, and `note` gives the reason.
    """
    model, shards = describe_causal_lm(folder, device=device)
    linears, blocks = target_linears(model, targets), find_blocks(model)
    shards.divide(list(blocks))
    stream = BlockStream(model, blocks, shards, device)
    with stream.ends():
        reason = stream.why_not(linears)
    if not reason:
        return stream, linears
    note = f"{type(model).__name__} {reason}; the whole model is held in memory"
    del model, shards, stream, linears
    model = load_causal_lm(folder, device=device)
    return WholeModel(model, note), target_linears(model, targets)


@contextmanager
def with_adapter(linears: Mapping[str, nn.Linear], factors: Mapping[str, Factors]) -> Iterator[None]:
    """Makes layers compute W_res x + A (B x), as PEFT does, within the block of code; W_res stays in them."""
    hooks = []
    with torch.no_grad():
        for name, f in factors.items():
            linear = linears[name]
            linear.weight.copy_(residual(linear.weight, f))
            a, b = (factor.to(linear.weight.device) for factor in (f.A, f.B))
            hooks.append(linear.register_forward_hook(partial(_add_adapter, a, b)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add_adapter(a: Tensor, b: Tensor, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    return (out + F.linear(F.linear(args[0].to(b.dtype), b), a)).to(out.dtype)
