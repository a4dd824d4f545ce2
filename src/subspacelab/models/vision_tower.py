"""The vision tower of a Qwen2.5-VL checkpoint alone; the language model is never read."""

from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from subspacelab.checkpoints import Checkpoint, Source, canonical_name, config_errors, open_checkpoint, require_finite
from subspacelab.data.patches import MEAN, MERGED_PIXELS, PATCH, STD, patchify
from subspacelab.files import read_json

PREFIX = "visual."
PROCESSOR_NAME = "preprocessor_config.json"


class VisionTower:
    """A vision tower ready to turn pictures into merged tokens."""

    def __init__(self, module: nn.Module, storage_dtype: torch.dtype) -> None:
        self._module = module
        self.storage_dtype = storage_dtype
        """The dtype of the checkpoint, in which features are stored."""

    @torch.inference_mode()
    def features(self, images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch tokens dim"]:
        """Merged tokens (`pooler_output`) in raster order, on the CPU in the checkpoint's dtype."""
        pixels, grid = patchify(images)
        place = next(self._module.parameters())
        pooled = self._module(pixels.to(place), grid_thw=grid.to(place.device)).pooler_output
        return pooled.view(len(images), -1, pooled.shape[-1]).to("cpu", self.storage_dtype)


def load_vision_tower(source: Source, device: torch.device) -> VisionTower:
    """Reads `visual.*` from the shards that hold it, in float32 on a CPU (bfloat16 is slower there), else as stored.

    Raises ValueError for another family, a picture processor with other settings, and missing weights.
    """
    with open_checkpoint(source) as checkpoint:
        if checkpoint.config.get("model_type") != "qwen2_5_vl":
            got = checkpoint.config.get("model_type", "no model_type")
            raise ValueError(f"{source.reference}: config.json says {got!r}; features need a 'qwen2_5_vl' checkpoint")
        _require_processor(source)
        raw = {canonical_name(name): name for name in checkpoint.names}
        names = {name.removeprefix(PREFIX): file for name, file in raw.items() if name.startswith(PREFIX)}
        for file in names.values():
            checkpoint.require_floating(file)
        module = _empty_tower(checkpoint)
        expected = dict(module.named_parameters())
        missing = sorted(expected.keys() - names.keys())
        if missing:
            raise ValueError(f"{source.reference}: {PREFIX}{missing[0]} is missing ({len(missing)} in all)")
        first = checkpoint.read(next(iter(names.values()))).dtype
        compute = torch.float32 if device.type == "cpu" else first
        state = {name: checkpoint.read(names[name]).to(device, compute, copy=True) for name in expected}
    for name, weight in state.items():
        require_finite(f"{source.reference}: {names[name]}", weight)
        if weight.shape != expected[name].shape:
            wanted = list(expected[name].shape)
            raise ValueError(f"{PREFIX}{name}: shape {list(weight.shape)}, config.json says {wanted}")
    module.load_state_dict(state, assign=True, strict=True)
    return VisionTower(module.to(device).eval(), first)


def _empty_tower(checkpoint: Checkpoint) -> nn.Module:
    """The module that config.json describes, without weights; ValueError if it describes none."""
    try:
        config: Any = Qwen2_5_VLConfig(**checkpoint.config).vision_config
        # include_buffers=False: the rotary frequencies are computed, not read.
        with init_empty_weights(include_buffers=False):
            module: nn.Module = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    except config_errors() as e:
        reason = " ".join(str(e).split())[:200]
        raise ValueError(
            f"{checkpoint.source.reference}: config.json describes no vision tower ({reason}); restore it"
        ) from e
    return module


def _require_processor(source: Source) -> None:
    """The pixels are prepared by `patchify`: a checkpoint that wants them otherwise is refused."""
    path = source.folder / PROCESSOR_NAME
    if not path.is_file():
        return
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: holds a {type(settings).__name__}, not a JSON object; restore it")
    ours = {"image_mean": list(MEAN), "image_std": list(STD), "patch_size": PATCH, "merge_size": MERGED_PIXELS // PATCH}
    for key, value in ours.items():
        if settings.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {settings[key]}, only {value} is supported")
