"""The residual stream of a causal language model, observed while text passes through its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from subspacelab.models.causal_lm import trunk_of


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks in order; ValueError if the model has no list of blocks."""
    if not hasattr(model, "config"):
        raise ValueError(f"{type(model).__name__}: no model of transformers; give a causal language model")
    depth = model.config.get_text_config().num_hidden_layers
    lists = (m for m in trunk_of(model).modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    found = next(lists, None)
    if found is None:
        raise ValueError(f"{type(model).__name__}: no list of {depth} blocks to watch; give a causal language model")
    return found


@contextmanager
def watched_stream(model: Any, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within the block, calls `take(layer, x)` as the model runs: x [batch, length, dim] is the residual stream.

    Layer 0 is the input of the first block, the embedding; layer i is the output of block i - 1. The last layer is
    before the final norm.
    """
    blocks = blocks_of(model)

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        take(0, _checked(arguments[0] if arguments else named["hidden_states"]))

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            take(layer, _checked(output[0] if isinstance(output, tuple) else output))

        return hook

    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after(i + 1)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_trunk(model: Any, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> None:
    """Runs the model without its head, when no logits are needed."""
    with torch.inference_mode():
        trunk_of(model)(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device), use_cache=False)


def _checked(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 3:
        shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"a block passes on {shape}, not one stream [batch, length, dim]; such models are not measured"
        )
    return x
