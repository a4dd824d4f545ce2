"""An adapter as a folder that plain PEFT loads on the original base: its files, and what they must hold."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints import read_tensors, require_finite, write_tensors
from subspacelab.files import read_json, replace_folder, write_json
from subspacelab.models.lora_factors import Factors, from_lora, to_lora

if TYPE_CHECKING:  # peft takes seconds to import, and who reads a folder needs none of it
    from peft import LoraConfig

META, WEIGHTS, CONFIG, INITIAL = (
    "nullspace.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "initial.safetensors",
)
PREFIX = "base_model.model."
"""What PEFT puts before a module's name in its files."""
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "rank": int,
    "seed": int,
    "base": dict,
    "targets": list,
    "down_frozen": bool,
    "layers": list,
    "trained": (bool, dict),
}
"""Keys without which `nullspace.json` says too little, and what they hold."""


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
    wrong = [key for key, kind in REQUIRED.items() if not isinstance(meta[key], kind)]
    wrong += [] if wrong or isinstance(meta["base"].get("reference"), str) else ["base.reference"]
    wrong += [] if wrong or (meta["targets"] and all(isinstance(t, str) for t in meta["targets"])) else ["targets"]
    if wrong:
        got = meta.get(wrong[0], "none")
        raise ValueError(f"{path}: {wrong[0]} cannot be {str(got)[:60]}; build the adapter again")
    return dict(meta)


def base_digest(weight: Float[Tensor, "out in"]) -> str:
    """SHA-256 of a weight's entries in float32: tells two checkpoints of one architecture apart."""
    entries = weight.detach().float().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(entries.numpy().data).hexdigest()


def lora_config(targets: list[str], rank: int) -> "LoraConfig":
    """An ordinary LoRA of scaling 1 on modules named in full, biases frozen."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )


def _config_json(targets: list[str], rank: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter_config.json`: PEFT's own would list the modules in an order that changes from process to process."""
    import peft

    config = lora_config(targets, rank).to_dict()
    config |= {"target_modules": sorted(targets), "inference_mode": True, "peft_version": peft.__version__}
    return config | {"base_model_name_or_path": base["reference"], "revision": base.get("revision")}


def read_factors(folder: Path, meta: Mapping[str, Any]) -> dict[str, Factors]:
    """Module -> its factors, as `nullspace.json` (`meta`) announces them; ValueError for NaN, gaps and other shapes."""
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
