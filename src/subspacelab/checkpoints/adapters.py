"""A PEFT LoRA adapter on disk or on the hub, read without PEFT: its settings and its factors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from pydantic import BaseModel, TypeAdapter
from torch import Tensor

from subspacelab.checkpoints.hub import TIMEOUT_SECONDS, hub_errors, why_not
from subspacelab.checkpoints.index import ADAPTER_CONFIG, inner_folder
from subspacelab.checkpoints.reader import Checkpoint, open_source
from subspacelab.checkpoints.references import HUB_REFERENCE
from subspacelab.checkpoints.validation import read_checked, require_finite
from subspacelab.core.errors import CheckpointError
from subspacelab.core.files import expanded

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""File names, tried in this order; from a torch file only tensors are loaded."""
PREFIX = "base_model.model."
"""Prefix that PEFT puts before a module's name."""
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>embedding_[AB]|[AB]|magnitude_vector)(?:\.(?P<rest>.+))?")
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initialisations that subtract a part from the base weight, so that B A alone is not the update."""


class AdapterConfig(BaseModel, extra="allow"):
    """The keys of adapter_config.json that this code reads."""

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None

    def rank(self, module: str) -> int:
        """Rank of the factors of `module`."""
        return (self.rank_pattern or {}).get(_pattern(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """Factor that multiplies B A: alpha / r, or alpha / sqrt(r) with rslora."""
        alpha = (self.alpha_pattern or {}).get(_pattern(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _pattern(patterns: dict[str, int] | dict[str, float] | None, module: str) -> str:
    """The first pattern that matches the end of a module's name, as PEFT matches it."""
    return next((p for p in patterns or () if re.match(rf"(.*\.)?({p})$", module)), module)


@dataclass(frozen=True)
class LoraLayer:
    """The factors of one module."""

    module: str
    """Name of the module in the model."""
    keys: dict[str, str]
    """Part (`A`, `B`, `embedding_A`, `embedding_B`, `magnitude_vector`) -> its key in the file."""

    @property
    def is_embedding(self) -> bool:
        """Whether the module is an embedding. The update of an embedding is stored transposed."""
        return "embedding_A" in self.keys

    @property
    def factor_names(self) -> tuple[str, str]:
        """Names of the down-projection and the up-projection among the parts."""
        return ("embedding_A", "embedding_B") if self.is_embedding else ("A", "B")


@dataclass(frozen=True)
class Adapter:
    """An open adapter."""

    reference: str
    """The reference, as the caller gave it."""
    revision: str | None
    """Commit of an adapter from the hub; else None."""
    folder: Path
    """Folder that holds its files."""
    config: AdapterConfig
    """Settings of the adapter."""
    tensors: Checkpoint
    """Reader of the factors."""
    layers: dict[str, LoraLayer]
    """Module name -> its factors, sorted by name."""
    others: tuple[str, ...]
    """Keys that are not factors, such as modules saved whole and biases."""

    def shape(self, layer: LoraLayer) -> tuple[int, int]:
        """[out, in] of the update B A, known without reading data; an embedding counts as a map from tokens."""
        down, up = (self.tensors.info(self._key(layer, part)).shape for part in layer.factor_names)
        rank = self.config.rank(layer.module)
        if len(down) < 2 or len(up) < 2 or down[0] != rank or math.prod(up[1:]) != rank:
            raise CheckpointError(
                f"{self.reference}: {layer.module} has lora_A {list(down)} and lora_B {list(up)}, and "
                f"{ADAPTER_CONFIG} says rank {rank}; save the adapter again"
            )
        return up[0], math.prod(down[1:])

    def transposed(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, bool]:
        """Module name -> whether its base weight is stored [in, out], as in Conv1D and embeddings.

        PEFT decides this by the class of the module; here it is inferred from the shapes of the base weights. A square
        weight is taken like the weights that are not square; if they differ, as [out, in]; if there are none, by
        `fan_in_fan_out`. CheckpointError if a weight does not have the shape of its update.
        """
        found: dict[str, bool | None] = {}
        for module, stored in shapes.items():
            layer = self.layers[module]
            out, inner = self.shape(layer)
            if stored not in ((out, inner), (inner, out)):
                raise CheckpointError(
                    f"{self.reference}: {module} is an update of {[out, inner]}, the base's weight is {list(stored)}; "
                    "give the base that it was trained on"
                )
            found[module] = True if layer.is_embedding else None if out == inner else stored != (out, inner)
        others = {found[module] for module in shapes if not self.layers[module].is_embedding} - {None}
        square = others == {True} if others else self.config.fan_in_fan_out
        return {module: square if turned is None else turned for module, turned in found.items()}

    def factors(self, layer: LoraLayer, transposed: bool) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]:
        """(L, R) in float64: the update of the base weight, in its stored layout, is L @ R, scaling included.

        For a convolution the update has the shape [out, in * kh * kw]. ValueError if an entry is not finite.
        """
        down, up = (self._read(layer, part).flatten(1) for part in layer.factor_names)
        up = up * self.config.scaling(layer.module)
        return (down.T, up.T) if transposed else (up, down)

    def magnitude(self, layer: LoraLayer) -> Float[Tensor, " out"] | None:
        """DoRA's magnitude of each output; None for plain LoRA."""
        return self._read(layer, "magnitude_vector").flatten() if "magnitude_vector" in layer.keys else None

    def _read(self, layer: LoraLayer, part: str) -> Tensor:
        key = self._key(layer, part)
        self.tensors.require_floating(key)
        tensor = self.tensors.read(key)
        require_finite(f"{self.reference}: {key}", tensor)
        return tensor.double()

    def _key(self, layer: LoraLayer, part: str) -> str:
        if part not in layer.keys:
            raise CheckpointError(f"{self.reference}: {layer.module} has no lora_{part}; save the adapter again")
        return layer.keys[part]


def open_adapter(reference: str | Path) -> Adapter:
    """Opens a PEFT LoRA folder, or a repository on the hub (`org/name[@revision]`); factors are read later.

    CheckpointError (or ValueError from the reader), in one line, if there is no adapter, if it is of another kind, if
    its initialisation changed the base, or if it adapts single parameters.
    """
    folder, revision = _find(str(reference))
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()), None)
    if not (folder / ADAPTER_CONFIG).is_file() or weights is None:
        expected = f"expected {ADAPTER_CONFIG} and one of {', '.join(ADAPTER_WEIGHTS)}"
        raise CheckpointError(f"{reference}: no adapter here; {inner_folder(folder, [ADAPTER_CONFIG]) or expected}")
    config = read_checked(folder / ADAPTER_CONFIG, TypeAdapter(AdapterConfig), "the config of an adapter")
    _require_lora(str(reference), config)
    tensors = open_source(weights)
    parts: dict[str, dict[str, str]] = {}
    others = []
    for key in tensors.names:
        found = KEY.fullmatch(key)
        if found is None or (found["rest"] or "").endswith("bias"):
            others.append(key)
            continue
        module = found["module"].removeprefix(PREFIX)
        if found["part"] in parts.setdefault(module, {}):
            raise CheckpointError(f"{reference}: {module} has two lora_{found['part']}; save one adapter per folder")
        parts[module][found["part"]] = key
    layers = {module: LoraLayer(module, parts[module]) for module in sorted(parts)}
    if not layers:
        raise CheckpointError(f"{reference}: no LoRA factors in {weights.name}; there is {others[0]!r}")
    return Adapter(str(reference), revision, folder, config, tensors, layers, tuple(others))


def _find(reference: str) -> tuple[Path, str | None]:
    """Folder and, for a repository on the hub, commit."""
    if reference and expanded(reference).exists():
        return expanded(reference), None
    match = HUB_REFERENCE.fullmatch(reference)
    if match is None:
        raise CheckpointError(f"{reference}: no such adapter; give a local folder or org/name[@revision]")
    from huggingface_hub import snapshot_download

    try:
        wanted = [ADAPTER_CONFIG, *ADAPTER_WEIGHTS]
        folder = snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=wanted, etag_timeout=TIMEOUT_SECONDS
        )
    except hub_errors() as e:
        raise CheckpointError(f"{reference}: no such local folder, and {why_not(e)}") from e
    return Path(folder), Path(folder).name


def _require_lora(reference: str, config: AdapterConfig) -> None:
    if config.peft_type != "LORA":
        raise CheckpointError(f"{reference}: an adapter of type {config.peft_type}; only LORA is read")
    start = config.init_lora_weights
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise CheckpointError(
            f"{reference}: init_lora_weights={start!r} took a part out of the base, so its factors are not the update; "
            "save it by save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if config.target_parameters:
        raise CheckpointError(
            f"{reference}: target_parameters={config.target_parameters[:3]}: factors of fused parameters are not read; "
            "merge the adapter and compare the checkpoints"
        )
