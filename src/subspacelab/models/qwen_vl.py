"""Qwen2.5-VL: building a small one, reading and writing folders, and the parts used in training and decoding."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from subspacelab.core.settings import Count, settings
from subspacelab.data.boxes import NUM_BINS

VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
BOX_START = "<|box_start|>"
LOCATIONS = tuple(f"<loc_{i}>" for i in range(NUM_BINS))
"""Tokens of a model that answers with a corner's bins, x1, y1, x2, y2, rather than in words."""


@settings
class QwenVLSizes:
    """Sizes of a small Qwen2.5-VL."""

    vision_hidden: Count = 128
    """Width of the vision tower."""
    vision_depth: Count = 4
    """Blocks of the vision tower; the last and every second one before it attend to the whole picture."""
    vision_heads: Count = 4
    """Attention heads of the tower; vision_hidden / vision_heads must be a multiple of 4."""
    vision_intermediate: Count = 256
    """Width of the tower's MLP."""
    hidden: Count = 256
    """Width of the language model and of a merged vision token."""
    depth: Count = 3
    """Blocks of the language model."""
    heads: Count = 4
    """Query heads of the language model; half as many key and value heads."""
    intermediate: Count = 512
    """Width of the language model's MLP."""


def build_qwen_vl(
    sizes: QwenVLSizes, *, vocab_size: int, token_ids: dict[str, int], initializer_range: float = 0.02
) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model (torch's global generator), with tied embeddings as in the 3B model.

    `token_ids` holds image_token_id, video_token_id, vision_start_token_id, vision_end_token_id and eos_token_id.
    """
    half = sizes.hidden // sizes.heads // 2
    side = half * 3 // 8
    text = {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": max(1, sizes.heads // 2),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": initializer_range,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10.0,
            "mrope_section": [half - 2 * side, side, side],
        },
        "bos_token_id": None,
        "eos_token_id": token_ids["eos_token_id"],
        "pad_token_id": token_ids["eos_token_id"],
    }
    vision = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": sizes.vision_intermediate,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden,
        "fullatt_block_indexes": list(range(sizes.vision_depth - 1, -1, -2))[::-1],
        "initializer_range": initializer_range,
    }
    ids = {k: v for k, v in token_ids.items() if k != "eos_token_id"}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token_ids["eos_token_id"]
    model.generation_config.pad_token_id = token_ids["eos_token_id"]
    return model


def load_qwen_vl(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """Loads a folder in float32, in evaluation mode."""
    logging.disable_progress_bar()  # a small model is there before a bar is
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def save_qwen_vl(model: Qwen2_5_VLForConditionalGeneration, folder: Path, *, max_shard_size: str = "6MB") -> None:
    """Writes configs, sharded safetensors with hub key names, and the picture processor's settings."""
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    Qwen2VLImageProcessorPil().save_pretrained(folder)


def vision_tokens(model: Any, batch: dict[str, Tensor]) -> Float[Tensor, "batch tokens dim"]:
    """Merged tokens of equally sized pictures, in raster order (`pooler_output`)."""
    grid = batch["image_grid_thw"]
    pooled = model.model.visual(batch["pixel_values"], grid_thw=grid).pooler_output
    return pooled.view(len(grid), -1, pooled.shape[-1])


def prompt_embeddings(
    model: Any, input_ids: Int[Tensor, "batch length"], pictures: Float[Tensor, "batch tokens dim"], start: int = 1
) -> Float[Tensor, "batch length dim"]:
    """Text embeddings with the picture's tokens inserted directly after the first `start` tokens."""
    text = model.get_input_embeddings()(input_ids)
    return torch.cat([text[:, :start], pictures, text[:, start + pictures.shape[1] :]], dim=1)


def prompt_positions(side: int, length: int, start: int = 1, span: int | None = None) -> Real[Tensor, "3 length"]:
    """Multimodal rotary positions (time, row, column) of a prompt with one side x side picture after `start` tokens.

    Text counts on from the largest position before it, as in Qwen2-VL (arXiv 2409.12191). With `length` larger than
    the prompt the answer's positions follow. Rows and columns spread over `span` positions instead of their own number
    where the model has learned no more (position interpolation, arXiv 2306.15595).
    """
    cell = torch.arange(side) if span is None else torch.arange(side) * (span / side)
    rows, columns = cell.repeat_interleave(side), cell.repeat(side)
    picture = torch.stack([torch.zeros_like(rows), rows, columns]) + start
    before, after = torch.arange(start), torch.arange(length - start - side**2) + start + (span or side)
    return torch.cat([before.expand(3, -1), picture, after.expand(3, -1)], dim=1)
