"""The vision tower of a Qwen2.5-VL checkpoint; the language model is never read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from subspacelab.checkpoints import (
    Checkpoint,
    Weights,
    canonical_name,
    config_errors,
    open_checkpoint,
    require_finite,
    tensor_digest,
)
from subspacelab.checkpoints.safetensors_file import TORCH_DTYPES
from subspacelab.core.files import read_json
from subspacelab.data.pictures import FRAMES, MEAN, MERGE, PATCH, STD, patchify

PREFIX = "visual."
PROCESSOR_NAME = "preprocessor_config.json"
NESTED_PROCESSOR_NAME = "processor_config.json"
"""File of transformers 5, which holds the settings of `PROCESSOR_NAME` under `image_processor`."""
MAX_WINDOW = 1 << 14
"""Largest side of an attention window in pixels; Qwen's windows have 112."""


class VisionTower:
    """A vision tower that turns pictures into merged tokens."""

    def __init__(self, module: nn.Module, storage_dtype: torch.dtype, digest: str) -> None:
        self._module = module
        self.storage_dtype = storage_dtype
        """The checkpoint's dtype, in which features are stored; float32 for a float64 checkpoint."""
        self.digest = digest
        """SHA-256 of the config and the stored weights."""

    @torch.inference_mode()
    def features(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch tokens dim"]:
        """Merged tokens (`pooler_output`) in raster order, on the CPU in the checkpoint's dtype."""
        pixels, grid = patchify(images)
        place = next(self._module.parameters())
        pooled = self._module(pixels.to(place), grid_thw=grid.to(place.device)).pooler_output
        return pooled.view(len(images), -1, pooled.shape[-1]).to("cpu", self.storage_dtype)


def load_vision_tower(weights: Weights, device: torch.device, image_size: int | None = None) -> VisionTower:
    """Reads `visual.*` and nothing else, each tensor once; from the hub by byte ranges.

    On a CPU the tower is float32, since bfloat16 is slower there; elsewhere it has the stored dtype. ValueError for
    another family, for missing or different settings of the picture processor, for an unsuitable `image_size`, for
    missing weights, and for weights that the tower does not use.
    """
    with open_checkpoint(weights) as checkpoint:
        names = _names_of_tower(checkpoint)
        _require_processor(checkpoint, image_size)
        config = _vision_config(checkpoint)
        _require_sizes(checkpoint, config, names)
        module = _empty_tower(checkpoint, config)
        expected = dict(module.named_parameters())
        storage = _storage_dtype(checkpoint, names[next(iter(expected))])
        compute = torch.float32 if device.type == "cpu" else storage
        of_file = {names[name]: name for name in expected}
        state, digests = {}, {}
        for file, stored in checkpoint.read_many([f for f in checkpoint.names_in_file_order() if f in of_file]):
            require_finite(f"{checkpoint.source.reference}: {file}", stored)
            digests[of_file[file]] = tensor_digest(stored)
            state[of_file[file]] = stored.to(compute, copy=True).to(device)  # mps takes no float64
        parts = [json.dumps(checkpoint.config.get("vision_config"), sort_keys=True)]
        parts += [f"{name} {digests[name]}" for name in sorted(expected)]
    module.load_state_dict(state, assign=True, strict=True)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return VisionTower(module.to(device).eval(), storage, digest)


def _names_of_tower(checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each weight in the tower -> its name in the files; ValueError for another family."""
    if checkpoint.config.get("model_type") != "qwen2_5_vl":
        got = checkpoint.config.get("model_type", "no model_type")
        raise ValueError(
            f"{checkpoint.source.reference}: config.json says {got!r}; features need a 'qwen2_5_vl' checkpoint"
        )
    raw = {canonical_name(name): name for name in checkpoint.names}
    names = {name.removeprefix(PREFIX): file for name, file in raw.items() if name.startswith(PREFIX)}
    for file in names.values():
        checkpoint.require_floating(file)
    return names


def _storage_dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    stored = TORCH_DTYPES[checkpoint.info(name).dtype]
    return torch.float32 if stored == torch.float64 else stored


def _vision_config(checkpoint: Checkpoint) -> Qwen2_5_VLVisionConfig:
    """The tower that config.json describes; ValueError if it describes none, or one that `patchify` does not fit."""
    reference = checkpoint.source.reference
    try:
        given = dict(checkpoint.config.get("vision_config") or {})
        given.pop("num_labels", None)  # a tower has none; a list would be made of as many as it says
        config = Qwen2_5_VLVisionConfig(**given)
    except config_errors() as e:
        raise _no_tower(reference, e) from e
    ours = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": FRAMES, "in_channels": 3}
    for key, value in ours.items():
        if getattr(config, key) != value:
            raise ValueError(f"{reference}: config.json: {key} is {getattr(config, key)}, only {value} is supported")
    for key in ("depth", "hidden_size", "intermediate_size", "out_hidden_size", "num_heads"):
        if getattr(config, key) < 1:
            raise ValueError(f"{reference}: config.json: {key} is {getattr(config, key)}, not at least 1; restore it")
    if config.hidden_size % (4 * config.num_heads):
        raise ValueError(
            f"{reference}: config.json: {config.num_heads} heads of the tower do not share {config.hidden_size}"
            " in multiples of 4; restore it"
        )
    if not PATCH * MERGE <= config.window_size <= MAX_WINDOW:
        raise ValueError(
            f"{reference}: config.json: window_size {config.window_size} is not from {PATCH * MERGE} to {MAX_WINDOW}"
        )
    return config


def _require_sizes(checkpoint: Checkpoint, config: Qwen2_5_VLVisionConfig, names: dict[str, str]) -> None:
    """ValueError unless the stored weights fit the tower in `config`; checked before memory is allocated."""
    reference = checkpoint.source.reference
    depth = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
    if config.depth != depth:
        raise ValueError(f"{reference}: config.json says {config.depth} blocks of the tower, the files hold {depth}")
    try:
        with torch.device("meta"):
            module = Qwen2_5_VisionTransformerPretrainedModel(config)
    except config_errors() as e:
        raise _no_tower(reference, e) from e
    wanted = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise ValueError(f"{reference}: {PREFIX}{missing[0]} is missing ({len(missing)} in all)")
    unknown = sorted(names.keys() - wanted.keys() - {name for name, _ in module.named_buffers()})
    if unknown:
        raise ValueError(
            f"{reference}: {names[unknown[0]]} has no place in the tower ({len(unknown)} such weights); "
            "use a checkpoint of Qwen2.5-VL as it is on the hub"
        )
    for name, shape in wanted.items():
        found = checkpoint.info(names[name]).shape
        if found != shape:
            raise ValueError(f"{PREFIX}{name}: shape {list(found)}, config.json says {list(shape)}")


def _empty_tower(checkpoint: Checkpoint, config: Qwen2_5_VLVisionConfig) -> nn.Module:
    """The module without weights."""
    try:
        # include_buffers=False: the rotary frequencies are computed, not read.
        with init_empty_weights(include_buffers=False):
            module: nn.Module = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    except config_errors() as e:
        raise _no_tower(checkpoint.source.reference, e) from e
    return module


def _no_tower(reference: str, e: Exception) -> ValueError:
    reason = " ".join(str(e).split())[:200]
    return ValueError(f"{reference}: config.json describes no vision tower ({reason}); restore it")


def _require_processor(checkpoint: Checkpoint, image_size: int | None) -> None:
    """ValueError if the checkpoint's picture processor prepares pixels in another way than `patchify`."""
    name, nested = NESTED_PROCESSOR_NAME, _read_settings(checkpoint, NESTED_PROCESSOR_NAME)
    settings = nested.get("image_processor")
    if settings is None:  # transformers looks for it there first
        name, settings = PROCESSOR_NAME, _read_settings(checkpoint, PROCESSOR_NAME)
    place = checkpoint.source.folder / name
    if not isinstance(settings, dict):
        raise ValueError(f"{place}: image_processor is a {type(settings).__name__}, not a JSON object; restore it")
    ours = {"image_mean": list(MEAN), "image_std": list(STD), "patch_size": PATCH, "merge_size": MERGE}
    ours |= {"temporal_patch_size": FRAMES, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    for key, value in ours.items():
        if settings.get(key) not in (None, value):
            raise ValueError(f"{place}: {key} is {settings[key]}, only {value} is supported")
    if image_size is not None:
        _require_pixels(place, settings, image_size)


def _require_pixels(place: Path, settings: dict[str, Any], image_size: int) -> None:
    """ValueError for a size that the processor would change."""
    size = settings["size"] if isinstance(settings.get("size"), dict) else {}
    fewest = settings.get("min_pixels") or size.get("shortest_edge") or 0
    most = settings.get("max_pixels") or size.get("longest_edge") or image_size**2
    if not all(isinstance(n, int) for n in (fewest, most)) or not fewest <= image_size**2 <= most:
        raise ValueError(
            f"{place}: takes pictures of {fewest} to {most} pixels, image_size {image_size} has {image_size**2}; "
            "choose another image_size"
        )


def _read_settings(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.find_file(name)
    settings = read_json(path) if path is not None else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}, not a JSON object; restore it")
    return settings
