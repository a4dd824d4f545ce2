"""An adapter inside its model: attached by PEFT or opened from its folder, and its trainable parameters."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from jaxtyping import Float
from peft import PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from subspacelab.models.adaptable import target_linears
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_factors import Factors, original, residual
from subspacelab.models.lora_folder import (
    META,
    base_digest,
    base_of,
    is_intact,
    lora_config,
    read_factors,
    read_meta,
    require_plain_lora,
)

ADAPTER = "default"
"""Name of our adapter in PEFT."""
DOWN, UP = "lora_A", "lora_B"
"""PEFT's names of B [r in] and A [out r]."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides the warning of peft 0.21, which asks transformers 5.23 for a property by its old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    """Name in the base model -> adapted layer, for all layers of our adapter."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def set_trainable(model: Any, *, up: bool, down: bool) -> None:
    """Makes exactly the up-projections and/or the down-projections of our adapter trainable.

    A frozen down-projection is entered in PEFT's own list of weights that stay frozen, which `set_adapter`,
    `enable_adapters`, loading and `set_requires_grad` respect. RuntimeError if PEFT does not respect it: a version
    without the list would silently train B.
    """
    for _, layer in lora_layers(model):
        _register(layer, frozen=not down)
    wanted = _wanted(model, up=up, down=down)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    if up:
        model.set_adapter(ADAPTER)  # what undoes a freeze that PEFT does not know of
    require_trainable(model, up=up, down=down)


def require_trainable(model: Any, *, up: bool, down: bool) -> None:
    """RuntimeError, naming a parameter, unless exactly the wanted ones are trainable."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(trained ^ _wanted(model, up=up, down=down))
    if wrong:
        state = "trains but must not" if wrong[0] in trained else "is frozen but must train"
        raise RuntimeError(
            f"{wrong[0]} {state} ({len(wrong)} such parameters): peft {peft.__version__} undid the freeze"
        )


def _wanted(model: Any, *, up: bool, down: bool) -> set[str]:
    """Full names of the parameters to train, found by the layers and not by a name pattern."""
    allowed = {
        id(getattr(layer, kind)[ADAPTER].weight)
        for _, layer in lora_layers(model)
        for kind, wanted in ((DOWN, down), (UP, up))
        if wanted
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in allowed}


def _register(layer: LoraLayer, *, frozen: bool) -> None:
    """Adds B to PEFT's list, or removes it, in a copy of the list, since all layers share one at first."""
    if not hasattr(layer, "frozen_peft_weight_names"):
        raise RuntimeError(f"peft {peft.__version__} keeps no list of frozen adapter weights; install peft 0.21")
    names = dict(layer.frozen_peft_weight_names)
    names[ADAPTER] = (DOWN,) if frozen else ()
    layer.frozen_peft_weight_names = names


def load_plain(base: Path, adapter: Path, *, device: torch.device) -> Any:
    """The base model in `base` with the adapter in `adapter`, in evaluation mode, all frozen.

    The result has the base's own class, with LoRA layers inside, so that it generates as the base does.
    """
    require_plain_lora(adapter)
    model = load_causal_lm(base, device=device)
    with quiet_peft():
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval().get_base_model()


@dataclass(frozen=True)
class LiveAdapter:
    """A PEFT model with base weights W_res and LoRA tensors A and B, so that plain training trains it."""

    model: Any
    """The PeftModel."""
    meta: dict[str, Any]
    """The content of `nullspace.json`."""
    initial: dict[str, tuple[Tensor, Tensor]]
    """Module -> (A0, B0); empty if W_res = W."""

    @property
    def down_frozen(self) -> bool:
        """Whether B keeps its initial value."""
        frozen: bool = self.meta["down_frozen"]
        return frozen

    def factors(self) -> dict[str, Factors]:
        """Module -> its factors; A and B are the parameters themselves, not copies."""
        pairs: dict[str, tuple[Any, Any]] = {
            name: (layer.lora_B[ADAPTER], layer.lora_A[ADAPTER]) for name, layer in lora_layers(self.model)
        }
        return {
            name: Factors(up.weight, down.weight, *self.initial.get(name, (None, None)))
            for name, (up, down) in pairs.items()
        }

    def residual_weight(self, module: str) -> Float[Tensor, "out in"]:
        """W_res, the base weight of a module in the live model."""
        layer: Any = dict(lora_layers(self.model))[module]
        weight: Tensor = layer.get_base_layer().weight
        return weight

    def base_weight(self, module: str) -> Float[Tensor, "out in"]:
        """W, the weight in the original checkpoint; if W_res differs from it, up to the rounding of one addition."""
        return original(self.residual_weight(module).detach(), self.factors()[module])


def attach_adapter(model: Any, factors: Mapping[str, Factors], meta: dict[str, Any]) -> LiveAdapter:
    """Puts factors on the linear layers of a base model, in place; everything is frozen."""
    linears = target_linears(model)
    # PEFT's random start is overwritten: it must not move the caller's generator.
    with torch.no_grad(), torch.random.fork_rng():
        for name, f in factors.items():
            if f.A0 is not None:
                linears[name].weight.copy_(residual(linears[name].weight, f))
        with quiet_peft():
            live: Any = get_peft_model(model, lora_config(list(factors), meta["rank"]))
        for name, layer in lora_layers(live):
            layer.lora_A[ADAPTER].weight.copy_(factors[name].B)  # type: ignore[operator]
            layer.lora_B[ADAPTER].weight.copy_(factors[name].A)  # type: ignore[operator]
    set_trainable(live, up=False, down=False)
    device = live.device
    initial = {
        name: (f.A0.to(device), f.B0.to(device)) for name, f in factors.items() if f.A0 is not None and f.B0 is not None
    }
    return LiveAdapter(live.eval(), meta, initial)


def open_adapter(
    folder: Path,
    *,
    base: str | None = None,
    trainable: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    shares: int = 1,
) -> LiveAdapter:
    """Opens the adapter in `folder` on its base, named by `nullspace.json` or by `base`.

    With `trainable`, A is trainable, and B if the method trains it; otherwise everything is frozen. ValueError, in one
    line, if the folder is incomplete, has NaN or wrong shapes, or belongs to another base. `dtype` is the base's; the
    adapter's factors are always float32. `shares` as in `load_causal_lm`; the adapter is whole in every process.
    """
    meta = read_meta(folder)
    source = base_of(meta, base)
    factors = read_factors(folder, meta)
    model = load_causal_lm(source.folder, dtype=dtype, device=device or torch.device("cpu"), shares=shares)
    require_base(model, factors, meta, source.reference, folder)
    if "files" in meta and not is_intact(folder, meta):
        raise ValueError(f"{folder}: its tensors are not those that {META} was written with; build the adapter again")
    live = attach_adapter(model, factors, meta)
    if trainable:
        set_trainable(live.model, up=True, down=not live.down_frozen)
    return live


def require_base(
    model: Any, factors: Mapping[str, Factors], meta: Mapping[str, Any], reference: str, folder: Path
) -> None:
    """ValueError unless every module exists in its shape, and the first has the weights of the build."""
    modules = dict(model.named_modules())
    for name, f in factors.items():
        shape = (f.A.shape[0], f.B.shape[1])
        found = modules.get(name)
        weight = found.weight if isinstance(found, nn.Linear) else None
        if weight is None or tuple(weight.shape) != shape:
            there = "no such layer" if weight is None else f"{list(weight.shape)}"
            raise ValueError(f"{folder}: made for another base: {name} is {list(shape)}, {reference} has {there}")
    first = next(iter(factors))
    if base_digest(modules[first].weight) != meta["base"].get("digest"):
        built_on = meta["base"]["reference"]
        raise ValueError(f"{folder}: built on {built_on}, and {first} of {reference} holds other weights; build again")
