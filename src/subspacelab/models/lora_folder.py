"""An adapter as a folder that plain PEFT loads on the original base: its files and their checks."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import torch
from annotated_types import MinLen
from jaxtyping import Float
from pydantic import BaseModel, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor

from subspacelab.checkpoints import Source, read_tensors, require_finite, resolve_reference, write_tensors
from subspacelab.core.files import expanded, holds, json_bytes, read_json, replace_folder, sha256_file, write_json
from subspacelab.core.references import of_pipeline
from subspacelab.models.adaptable import Reach
from subspacelab.models.adapter_card import CARD, edited_card, signed
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
"""Prefix that PEFT puts before a module's name in its files."""
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("use_dora", "use_rslora", "fan_in_fan_out"), False),
    **dict.fromkeys(("modules_to_save", "layers_to_transform")),
    **{"bias": "none", "rank_pattern": {}, "alpha_pattern": {}},
}
"""Settings of every `adapter_config.json` that we write: PEFT then computes W + A B and nothing else."""
T = TypeVar("T")

AGAIN = "build the adapter again"
FILES = (META, WEIGHTS, CONFIG, INITIAL, CARD)
"""All files of an adapter's folder."""


class _Base(BaseModel):
    """The base that an adapter was built on."""

    reference: str
    revision: str | None
    digest: str


class _Meta(BaseModel):
    """The required keys of `nullspace.json`; there are more."""

    method: str
    rank: PositiveInt
    seed: int
    base: _Base
    targets: Annotated[list[str], MinLen(1)]
    down_frozen: bool
    layers: list[dict[str, Any]]
    trained: Literal[False] | dict[str, Any]
    job: dict[str, Any] = {}
    files: dict[str, str] = {}
    reach: Reach | None = None


class _PlainLora(BaseModel):
    """The values that `adapter_config.json` must have, so that PEFT loads the adapter as it was written."""

    peft_type: Literal["LORA"]
    r: PositiveInt
    target_modules: list[str]
    auto_mapping: None = None


def write_adapter(folder: Path, factors: Mapping[str, Factors], meta: Mapping[str, Any], card: str) -> None:
    """Writes a plain LoRA adapter on the original base, its start, `nullspace.json` and its `card` (README.md).

    Whole or not at all. A card that somebody edited, in the replaced folder, is kept instead of `card`.
    """
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
        files = {name: sha256_file(partial / name) for name in (WEIGHTS, INITIAL) if (partial / name).exists()}
        write_json(partial / META, {**meta, "files": files})
        (partial / CARD).write_bytes(edited_card(folder) or signed(card))


def write_lora(
    folder: Path,
    factors: Mapping[str, tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]],
    base: Mapping[str, Any],
    *,
    fan_in_fan_out: bool = False,
) -> None:
    """Writes module -> (lora_A, lora_B) of any ranks as a plain LoRA adapter of scaling 1 into `folder`.

    `base` has `reference` and `revision`. Patterns are whole names: `^` keeps one from matching the end of another.
    """
    ranks = {name: len(down) for name, (down, _) in factors.items()}
    most = max(ranks.values())
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    tensors = {
        f"{PREFIX}{name}.lora_{part}.weight": tensor
        for name, (down, up) in factors.items()
        for part, tensor in (("A", down), ("B", up))
    }
    write_tensors(folder / WEIGHTS, tensors)
    config = _config_json(list(factors), most, base) | {"rank_pattern": patterns, "alpha_pattern": patterns}
    write_json(folder / CONFIG, config | {"task_type": None, "fan_in_fan_out": fan_in_fan_out})


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of `nullspace.json`; ValueError if it is missing or incomplete."""
    path = folder / META
    if not path.is_file():
        raise ValueError(
            f"{folder}: no {META}, so no adapter of this project; make one by `subspacelab nullspace build`"
        )
    meta = read_json(path)
    read_schema(_Meta, meta, path, AGAIN)
    return dict(meta)


def base_of(meta: Mapping[str, Any], base: str | None = None) -> Source:
    """The base model named by `nullspace.json` (`meta`), or `base` in its place.

    ValueError that names `base` if the folder is no longer there: it is never looked up on the hub, where anybody may
    have given its name to another model.
    """
    if base is not None:
        return resolve_reference(base)
    reference, revision = meta["base"]["reference"], meta["base"]["revision"]
    if revision is not None:
        return resolve_reference(f"{reference}@{revision}")
    if not of_pipeline(reference) and not expanded(reference).exists():
        raise ValueError(
            f"the adapter's base, {reference}, is no such checkpoint on this disk; give its place as `base`"
        )
    return resolve_reference(reference)


def require_plain_lora(folder: Path) -> None:
    """ValueError unless `adapter_config.json` describes a plain LoRA, for which PEFT runs no foreign code."""
    read_schema(_PlainLora, read_json(folder / CONFIG), folder / CONFIG, AGAIN)


def read_schema(kind: type[T], content: Any, path: Path, remedy: str) -> T:
    """`content`, read from `path`, as an instance of that type; ValueError names the wrong key."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as e:
        problem = e.errors()[0]
        parts = [str(part) for part in problem["loc"] if not str(part).startswith(("literal", "dict"))]
        key = ".".join(parts) or "the content"
        if problem["type"] == "missing":
            raise ValueError(f"{path}: no key {key!r}; {remedy}") from e
        raise ValueError(f"{path}: {key} cannot be {str(problem['input'])[:60]}; {remedy}") from e


def require_own_config(folder: Path) -> None:
    """ValueError if PEFT has saved here since: PEFT's `adapter_config.json` ends without a newline, ours with one.

    A damaged one is accepted, since it is rewritten with the rest. Also for a card that is not a file.
    """
    edited_card(folder)
    path = folder / CONFIG
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return
    if not holds(path, json_bytes(content)):
        raise ValueError(
            f"{path}: changed since it was written, by PEFT or by hand, and the change would be lost; "
            "give another folder, or move it away"
        )


def is_intact(folder: Path, meta: Mapping[str, Any]) -> bool:
    """Whether `adapter_config.json` can be read and the tensors match the digests in `nullspace.json` (`meta`)."""
    files = meta.get("files", {})
    try:
        read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return bool(files) and all((folder / n).is_file() and sha256_file(folder / n) == files[n] for n in files)


def base_digest(weight: Float[Tensor, "out in"]) -> str:
    """SHA-256 of a weight's entries in float32: distinguishes two checkpoints of one architecture."""
    whole: Any = weight.detach()
    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole  # of a model that processes share
    entries = whole.float().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(entries.numpy().data).hexdigest()


def lora_config(targets: list[str], rank: int) -> "LoraConfig":
    """A plain LoRA config of scaling 1 for modules with full names, biases frozen."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )


def _config_json(targets: list[str], rank: int, base: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter_config.json`, written by us: PEFT would list the modules in an order that changes between processes."""
    import peft

    config = lora_config(targets, rank).to_dict()
    config |= {"target_modules": sorted(targets), "inference_mode": True, "peft_version": peft.__version__}
    return config | {"base_model_name_or_path": base["reference"], "revision": base.get("revision")}


def read_factors(folder: Path, meta: Mapping[str, Any]) -> dict[str, Factors]:
    """Module -> its factors, as `nullspace.json` (`meta`) lists them.

    ValueError for NaN, missing factors, other shapes, and an `adapter_config.json` that PEFT would read as another
    adapter.
    """
    tensors, _ = read_tensors(folder / WEIGHTS)
    initial = read_tensors(folder / INITIAL)[0] if (folder / INITIAL).exists() else {}
    for name, tensor in (tensors | initial).items():
        require_finite(f"{folder}: {name}", tensor)
    factors = {}
    width = meta["rank"] * (2 if initial and not meta["down_frozen"] else 1)
    for name in meta["targets"]:
        start = None
        if initial:
            start = (_pick(initial, f"{name}.A0", folder), _pick(initial, f"{name}.B0", folder))
        down = _pick(tensors, f"{PREFIX}{name}.lora_A.weight", folder)
        up = _pick(tensors, f"{PREFIX}{name}.lora_B.weight", folder)
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != width or up.shape[1] != width:
            raise ValueError(
                f"{folder}: {name} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, rank {width} was built;"
                " build it again"
            )
        factors[name] = from_lora(down, up, start, down_frozen=meta["down_frozen"])
    written = PLAIN | {"r": width, "lora_alpha": width, "target_modules": sorted(meta["targets"])}
    _require_settings(folder / CONFIG, written)
    return factors


def _require_settings(path: Path, written: Mapping[str, Any]) -> None:
    found = read_json(path) if path.is_file() else {}
    for key, value in written.items():
        if isinstance(found, dict) and found.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {str(found[key])[:60]}, it was written as {str(value)[:60]}; {AGAIN}")


def _pick(tensors: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{folder}: {name} is missing; build the adapter again")
    return tensors[name]
