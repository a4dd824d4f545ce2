"""An adapter alive in its model, and as a folder that plain PEFT loads on the original base."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from subspacelab.checkpoints import read_tensors, require_finite, resolve_reference, write_tensors
from subspacelab.files import read_json, replace_folder, write_json
from subspacelab.models.causal_lm import load_causal_lm, target_linears
from subspacelab.models.lora_factors import Factors, from_lora, original, residual, to_lora
from subspacelab.models.lora_freeze import ADAPTER, lora_layers, quiet_peft, set_trainable

META, WEIGHTS, CONFIG, INITIAL = (
    "nullspace.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "initial.safetensors",
)
PREFIX = "base_model.model."
"""What PEFT puts before a module's name in its files."""
REQUIRED = ("method", "rank", "seed", "base", "targets", "down_frozen", "layers", "trained")
"""Keys without which `nullspace.json` says too little."""


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


def lora_config(targets: list[str], rank: int) -> LoraConfig:
    """An ordinary LoRA of scaling 1 on modules named in full, biases frozen."""
    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )


def open_adapter(
    folder: Path, *, base: str | None = None, trainable: bool = False, device: torch.device | None = None
) -> LiveAdapter:
    """The adapter of `folder` on its base, which `nullspace.json` names unless `base` does.

    `trainable` lets A train, and B where the method says so; otherwise everything is frozen. ValueError, in one line,
    for a folder that is incomplete, holds NaN or wrong shapes, or belongs to another base.
    """
    meta = read_meta(folder)
    source = resolve_reference(base or _reference(meta["base"]))
    factors = _read_factors(folder, meta)
    model = load_causal_lm(source.folder, device=device or torch.device("cpu"))
    _require_base(model, factors, meta, source.reference, folder)
    live = attach_adapter(model, factors, meta)
    if trainable:
        set_trainable(live.model, up=True, down=not live.down_frozen)
    return live


def save_adapter(live: LiveAdapter, folder: Path, *, trained: Mapping[str, Any] | None = None) -> None:
    """Writes the adapter as it stands; `trained` says how it was trained and takes its place in `nullspace.json`."""
    meta = live.meta if trained is None else live.meta | {"trained": dict(trained)}
    write_adapter(folder, live.factors(), meta)


def write_adapter(folder: Path, factors: Mapping[str, Factors], meta: Mapping[str, Any]) -> None:
    """Writes an ordinary LoRA adapter on the original base, its start, and `nullspace.json`: whole or not at all."""
    tensors: dict[str, Tensor] = {}
    initial: dict[str, Tensor] = {}
    for name, f in factors.items():
        down, up = to_lora(f, down_frozen=meta["down_frozen"])
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up}
        if f.A0 is not None and f.B0 is not None:
            initial |= {f"{name}.A0": f.A0, f"{name}.B0": f.B0}
    rank = meta["rank"] * (2 if initial and not meta["down_frozen"] else 1)
    with replace_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, tensors)
        if initial:
            write_tensors(partial / INITIAL, initial)
        write_json(partial / CONFIG, _config_json(list(factors), rank, meta["base"]))
        write_json(partial / META, dict(meta))


def read_meta(folder: Path) -> dict[str, Any]:
    """The contents of `nullspace.json`; ValueError when it is missing or says too little."""
    path = folder / META
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {META}, so no adapter of this project; make one by `subspacelab nullspace build`"
        )
    meta = read_json(path)
    missing = [key for key in REQUIRED if key not in meta] if isinstance(meta, dict) else list(REQUIRED)
    if missing:
        raise ValueError(f"{path}: no key {missing[0]!r}; build the adapter again")
    return dict(meta)


def base_digest(weight: Float[Tensor, "out in"]) -> str:
    """SHA-256 of a weight's entries in float32: tells two checkpoints of one architecture apart."""
    entries = weight.detach().float().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(entries.numpy().data).hexdigest()


def _reference(base: Mapping[str, Any]) -> str:
    reference, revision = str(base["reference"]), base.get("revision")
    return f"{reference}@{revision}" if revision and not Path(reference).exists() else reference


def _config_json(targets: list[str], rank: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter_config.json`: PEFT's own would list the modules in an order that changes from process to process."""
    config = lora_config(targets, rank).to_dict()
    config |= {"target_modules": sorted(targets), "inference_mode": True, "peft_version": peft.__version__}
    return config | {"base_model_name_or_path": base["reference"], "revision": base.get("revision")}


def _read_factors(folder: Path, meta: Mapping[str, Any]) -> dict[str, Factors]:
    tensors, _ = read_tensors(folder / WEIGHTS)
    initial = read_tensors(folder / INITIAL)[0] if (folder / INITIAL).exists() else {}
    for name, tensor in (tensors | initial).items():
        require_finite(f"{folder}: {name}", tensor)
    factors = {}
    for name in meta["targets"]:
        start = None
        if initial:
            start = (_pick(initial, f"{name}.A0", folder), _pick(initial, f"{name}.B0", folder))
        down = _pick(tensors, f"{PREFIX}{name}.lora_A.weight", folder)
        up = _pick(tensors, f"{PREFIX}{name}.lora_B.weight", folder)
        width = meta["rank"] * (2 if start is not None and not meta["down_frozen"] else 1)
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != width or up.shape[1] != width:
            raise ValueError(
                f"{folder}: {name} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, rank {width} was built;"
                " build it again"
            )
        factors[name] = from_lora(down, up, start, down_frozen=meta["down_frozen"])
    return factors


def _pick(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{folder}: {name} is missing; build the adapter again")
    return tensors[name]


def _require_base(
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
