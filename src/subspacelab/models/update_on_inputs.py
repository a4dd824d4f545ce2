"""The effect of an update of linear layers on the inputs that the model really feeds them."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.checkpoints import canonical_name
from subspacelab.data.windows import Windows
from subspacelab.models.causal_lm import trunk_of


@dataclass
class OnInputs:
    """Sums of squares over all tokens x of a layer with weight W and update D."""

    update: float = 0.0
    """||D x||^2."""
    output: float = 0.0
    """||W x||^2, without the bias."""
    inputs: float = 0.0
    """||x||^2."""


@torch.inference_mode()
def measure_on_inputs(
    model: Any,
    factors: Mapping[str, tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]],
    windows: Windows,
    *,
    batch_size: int = 8,
) -> dict[str, OnInputs]:
    """Runs the windows through the model; canonical name of a weight -> sums, for each (L, R) with D = L R.

    Nothing larger than an input is kept: the sums are formed while the layers run. Padding is left out. A layer that
    does not run, or that the model lacks, is missing in the result.
    """
    sums: dict[str, OnInputs] = {}
    mask = torch.empty(0, dtype=torch.bool)

    def hook_of(name: str) -> Any:
        left, right = (factor.float().to(model.device) for factor in factors[name])

        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            kept = mask.flatten().to(output.device)
            x = arguments[0].reshape(-1, arguments[0].shape[-1])[kept].float()
            y = output.reshape(-1, output.shape[-1])[kept].float()
            bias = getattr(module, "bias", None)
            found = sums.setdefault(name, OnInputs())
            found.update += _square(x @ right.T @ left.T)
            found.output += _square(y if bias is None else y - bias.float())
            found.inputs += _square(x)

        return hook

    named = {canonical_name(f"{name}.weight"): module for name, module in model.named_modules()}
    with ExitStack() as stack:
        for name in factors.keys() & named.keys():
            stack.callback(named[name].register_forward_hook(hook_of(name)).remove)
        for ids, mask in zip(
            windows.input_ids.split(batch_size), windows.attention_mask.split(batch_size), strict=True
        ):
            trunk_of(model)(
                input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device), use_cache=False
            )
    return sums


def _square(x: Tensor) -> float:
    return x.double().square().sum().item() if x.device.type != "mps" else x.square().sum().item()
