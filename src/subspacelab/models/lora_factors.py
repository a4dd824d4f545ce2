"""The factors of an adapter: how PEFT initialises them, and the equivalent plain LoRA pair on the original weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.core.devices import float64_place


@dataclass(frozen=True)
class Factors:
    """One layer's y = A (B x) + W_res x, where W_res = W - A0 B0."""

    A: Float[Tensor, "out r"]
    """Up-projection."""
    B: Float[Tensor, "r in"]
    """Down-projection."""
    A0: Float[Tensor, "out r"] | None = None
    """Up-projection that was subtracted from W at the start; None if W_res = W."""
    B0: Float[Tensor, "r in"] | None = None
    """Down-projection that was subtracted from W at the start; None if W_res = W."""


def residual(w: Float[Tensor, "out in"], factors: Factors) -> Float[Tensor, "out in"]:
    """W_res = W - A0 B0, computed in float64 and rounded once to the dtype of `w`; `w` itself if W_res = W."""
    return w if factors.A0 is None else _added(w, -_product(factors))


def original(w_res: Float[Tensor, "out in"], factors: Factors) -> Float[Tensor, "out in"]:
    """W = W_res + A0 B0, up to the rounding of one addition; `w_res` itself if W_res = W."""
    return w_res if factors.A0 is None else _added(w_res, _product(factors))


def to_lora(factors: Factors, *, down_frozen: bool) -> tuple[Float[Tensor, "k in"], Float[Tensor, "out k"]]:
    """PEFT's (lora_A, lora_B) on the original W, with lora_B lora_A = A B - A0 B0.

    k = r if W_res = W: (B, A); also if B never changed: (B, A - A0). Else k = 2 r: ([B; B0], [A, -A0]).
    """
    a, b, a0, b0 = factors.A, factors.B, factors.A0, factors.B0
    if a0 is None or b0 is None:
        return b, a
    if down_frozen:
        if not torch.equal(b, b0):
            raise RuntimeError("a frozen down-projection has moved; its adapter has no export at rank r")
        return b, a - a0
    return torch.cat([b, b0]), torch.cat([a, -a0], dim=1)


def from_lora(
    lora_a: Float[Tensor, "k in"],
    lora_b: Float[Tensor, "out k"],
    initial: tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]] | None,
    *,
    down_frozen: bool,
) -> Factors:
    """The inverse of `to_lora`; `initial` is (A0, B0), None if W_res = W."""
    if initial is None:
        return Factors(lora_b, lora_a)
    a0, b0 = initial
    if down_frozen:
        return Factors(lora_b + a0, lora_a, a0, b0)
    rank = b0.shape[0]
    return Factors(lora_b[:, :rank].contiguous(), lora_a[:rank].contiguous(), a0, b0)


def _product(factors: Factors) -> Float[Tensor, "out in"]:
    assert factors.A0 is not None
    assert factors.B0 is not None
    place = float64_place(factors.A0.device)
    return factors.A0.to(place).double() @ factors.B0.to(place).double()


def _added(w: Float[Tensor, "out in"], update: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The sum, computed in float64 where possible; in the dtype and on the device of `w`."""
    place = float64_place(w.device)
    return (w.to(place).double() + update.to(place)).to(w.dtype).to(w.device)


def peft_start(linear: nn.Linear, rank: int, init: bool | str) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"]]:
    """(A, B) = (lora_B, lora_A) as `init_lora_weights=init` initialises them on this layer, float32 on the CPU.

    True draws from torch's global generator; "pissa" takes the leading terms of the layer's SVD; "corda" uses, and then
    removes, what `prepare_corda` stored at the layer.
    """
    from peft import LoraConfig, get_peft_model  # seconds, which who reads an adapter need not wait for
    from peft.tuners.lora.config import CordaConfig

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
    """Stores CorDA's decomposition svd(W C) C^-1 at each target, for `peft_start`.

    kpm: the directions of least energy, which preserve knowledge (arXiv 2406.05223). `run_model` must run the model on
    one unpadded window at a time; C of every target is held at once, in float32.
    """
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

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
        raise ValueError(f"corda: PEFT cannot start from these inputs ({e}); all inputs of a layer may be zero") from e


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Sets torch's global generator, PEFT's only source of randomness, to `seed` within the block."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
