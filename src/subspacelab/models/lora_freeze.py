"""Which parameters of a LoRA model train: an allow-list, and a down-projection that stays frozen."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
from peft.tuners.lora.layer import LoraLayer

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
