"""The factors of an adapter, and the ordinary LoRA pair on the original weights that says the same."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.devices import float64_place


@dataclass(frozen=True)
class Factors:
    """One layer's y = A (B x) + W_res x, where W_res = W - A0 B0."""

    A: Float[Tensor, "out r"]
    """Up-projection."""
    B: Float[Tensor, "r in"]
    """Down-projection."""
    A0: Float[Tensor, "out r"] | None = None
    """Up-projection that was taken out of W at the start; None where W_res = W."""
    B0: Float[Tensor, "r in"] | None = None
    """Down-projection that was taken out of W at the start; None where W_res = W."""


def residual(w: Float[Tensor, "out in"], factors: Factors) -> Float[Tensor, "out in"]:
    """W_res = W - A0 B0, computed in float64 and rounded once to the dtype of `w`; `w` itself where W_res = W."""
    return w if factors.A0 is None else _added(w, -_product(factors))


def original(w_res: Float[Tensor, "out in"], factors: Factors) -> Float[Tensor, "out in"]:
    """W = W_res + A0 B0, to the rounding of one addition; `w_res` itself where W_res = W."""
    return w_res if factors.A0 is None else _added(w_res, _product(factors))


def to_lora(factors: Factors, *, down_frozen: bool) -> tuple[Float[Tensor, "k in"], Float[Tensor, "out k"]]:
    """PEFT's (lora_A, lora_B) on the original W, with lora_B lora_A = A B - A0 B0.

    k = r where W_res = W (B, A), and where B never moved (B, A - A0). Else k = 2 r: ([B; B0], [A, -A0]).
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
    """The inverse of `to_lora`; `initial` is (A0, B0), None where W_res = W."""
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
    """The sum in float64, where there is float64, in the dtype and on the device of `w`."""
    place = float64_place(w.device)
    return (w.to(place).double() + update.to(place)).to(w.dtype).to(w.device)
