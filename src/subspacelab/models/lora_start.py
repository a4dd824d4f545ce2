"""PEFT's own ways to start a LoRA, run on one matrix at a time; the model they are for stays as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn


def peft_start(linear: nn.Linear, rank: int, init: bool | str) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """(A, B) = (lora_B, lora_A) as `init_lora_weights=init` starts them on this layer, float32 on the CPU.

    True draws from torch's global generator; "pissa" takes the top of the layer's SVD; "corda" what
    `prepare_corda` left at the layer, and takes it away.
    """
    holder = nn.Module()
    holder.layer = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    holder.layer.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    if init == "corda":
        holder.layer.eigens = linear.eigens
        del linear.eigens
    corda = CordaConfig(corda_method="kpm") if init == "corda" else None
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"], init_lora_weights=init, corda_config=corda)  # type: ignore[arg-type]
    layer: Any = get_peft_model(holder, config).get_submodule("base_model.model.layer")  # type: ignore[arg-type]
    up, down = (getattr(layer, kind)["default"].weight.detach().float().cpu() for kind in ("lora_B", "lora_A"))
    return up.contiguous(), down.contiguous()


def prepare_corda(model: Any, targets: list[str], rank: int, run_model: Callable[[], None]) -> None:
    """CorDA's decomposition svd(W C) C^-1 of each target, kept at the layer for `peft_start`.

    kpm: the directions of least energy, which preserve knowledge (arXiv 2406.05223). `run_model` must run the model
    on one unpadded window at a time; C of every target is held at once, in float32.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=targets,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm", verbose=False, prune_temporary_fields=True),
    )
    try:
        preprocess_corda(model, config, run_model=run_model)
    except ValueError as e:  # PEFT names neither the layer nor the cause
        raise ValueError(f"corda: PEFT cannot start from these inputs ({e}); a layer may be fed zeros alone") from e


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` inside, as it was outside: PEFT has no other source of chance."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
