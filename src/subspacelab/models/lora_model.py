"""An adapter alive in its model: attached by PEFT, opened from its folder, and what of it trains."""

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

from subspacelab.models.causal_lm import load_causal_lm, target_linears
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
"""The name under which PEFT keeps our adapter."""
DOWN, UP = "lora_A", "lora_B"
"""PEFT's names of B [r in] and A [out r]."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft 0.21 earns by asking transformers 5.23 for a property by its old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    """Name in the base model and layer of everything that our adapter is on."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def set_trainable(model: Any, *, up: bool, down: bool) -> None:
    """Lets exactly the up-projections and/or the down-projections of our adapter train, and nothing else.

    A frozen down-projection is entered in PEFT's own list of weights that stay frozen, which `set_adapter`,
    `enable_adapters`, loading and `set_requires_grad` respect. RuntimeError if PEFT does not: a version that
    has dropped the list would train B without a word.
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
    """RuntimeError, naming a parameter, unless exactly the wanted ones train."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(trained ^ _wanted(model, up=up, down=down))
    if wrong:
        state = "trains but must not" if wrong[0] in trained else "is frozen but must train"
        raise RuntimeError(
            f"{wrong[0]} {state} ({len(wrong)} such parameters): peft {peft.__version__} undid the freeze"
        )


def _wanted(model: Any, *, up: bool, down: bool) -> set[str]:
    """Full names of the parameters that shall train, found by the layers and not by a pattern in a name."""
    allowed = {
        id(getattr(layer, kind)[ADAPTER].weight)
        for _, layer in lora_layers(model)
        for kind, wanted in ((DOWN, down), (UP, up))
        if wanted
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in allowed}


def _register(layer: LoraLayer, *, frozen: bool) -> None:
    """Enters B in PEFT's list, or takes it out; a copy, since the list starts as one that all layers share."""
    if not hasattr(layer, "frozen_peft_weight_names"):
        raise RuntimeError(f"peft {peft.__version__} keeps no list of frozen adapter weights; install peft 0.21")
    names = dict(layer.frozen_peft_weight_names)
    names[ADAPTER] = (DOWN,) if frozen else ()
    layer.frozen_peft_weight_names = names


def load_plain(base: Path, adapter: Path, *, device: torch.device) -> Any:
    """The base model in `base` with the adapter in `adapter` on it, in evaluation mode, all frozen.

    Returned is the base's own class with LoRA layers in it, so that it generates as the base does.
    """
    require_plain_lora(adapter)
    model = load_causal_lm(base, device=device)
    with quiet_peft():
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval().get_base_model()


@dataclass(frozen=True)
class LiveAdapter:
    """A PEFT model whose base weights are W_res and whose LoRA tensors are A and B: training it is plain training."""

    model: Any
    """The PeftModel."""
    meta: dict[str, Any]
    """The contents of `nullspace.json`."""
    initial: dict[str, tuple[Tensor, Tensor]]
    """Module -> (A0, B0); empty where W_res = W."""

    @property
    def down_frozen(self) -> bool:
        """Whether B stays as it was built."""
        frozen: bool = self.meta["down_frozen"]
        return frozen

    def factors(self) -> dict[str, Factors]:
        """Module -> its factors; A and B are the live parameters."""
        pairs: dict[str, tuple[Any, Any]] = {
            name: (layer.lora_B[ADAPTER], layer.lora_A[ADAPTER]) for name, layer in lora_layers(self.model)
        }
        return {
            name: Factors(up.weight, down.weight, *self.initial.get(name, (None, None)))
            for name, (up, down) in pairs.items()
        }

    def residual_weight(self, module: str) -> Float[Tensor, "out in"]:
        """W_res, the live base weight of a module."""
        layer: Any = dict(lora_layers(self.model))[module]
        weight: Tensor = layer.get_base_layer().weight
        return weight

    def base_weight(self, module: str) -> Float[Tensor, "out in"]:
        """W, the weight in the original checkpoint; where W_res differs, to the rounding of one addition."""
        return original(self.residual_weight(module).detach(), self.factors()[module])


def attach_adapter(model: Any, factors: Mapping[str, Factors], meta: dict[str, Any]) -> LiveAdapter:
    """Puts factors on the linear layers of a base model, in place, and leaves everything frozen."""
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
    """The adapter of `folder` on its base, which `nullspace.json` names unless `base` does.

    `trainable` lets A train, and B where the method says so; otherwise everything is frozen. ValueError, in one line,
    for a folder that is incomplete, holds NaN or wrong shapes, or belongs to another base. `dtype` is the base's; the
    adapter's factors are in float32 whatever it is. `shares` as in `load_causal_lm`; the adapter is whole everywhere.
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
    """ValueError unless every module is there in its shape, and the first has the weights that were built on."""
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
