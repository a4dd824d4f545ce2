"""Prompts: pictures, questions and boxes as the tensors that a Qwen2.5-VL model takes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from subspacelab.data.patches import MERGED_PIXELS, patchify
from subspacelab.demo.tokenizer import BOX_START, IMAGE_PAD, NUM_BINS, VISION_END, VISION_START, DemoTokenizer

NUM_COORDINATES = 4


def encode_prompts(
    tokenizer: DemoTokenizer, images: UInt8[Tensor, "batch size size 3"], questions: Sequence[str]
) -> dict[str, Tensor]:
    """<vision_start> image <vision_end> question <box_start>, one row per picture, no padding.

    Returns input_ids and attention_mask [batch length], pixel_values [batch*patches 1176], image_grid_thw [batch 3],
    mm_token_type_ids [batch length] and position_ids [3 batch length]. Questions of different lengths are refused.
    """
    texts = [tokenizer.encode(question) for question in questions]
    if len({len(t) for t in texts}) != 1:
        lengths = sorted({len(t) for t in texts})
        raise ValueError(f"questions: token counts {lengths} differ in one batch; pass questions of one length")
    pixel_values, grid = patchify(images)
    side = images.shape[1] // MERGED_PIXELS
    start, end, box = (tokenizer.id(t) for t in (VISION_START, VISION_END, BOX_START))
    picture = [start] + [tokenizer.id(IMAGE_PAD)] * side**2 + [end]
    input_ids = torch.tensor([[*picture, *text, box] for text in texts])
    image_type = (input_ids == tokenizer.id(IMAGE_PAD)).int()
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": pixel_values,
        "image_grid_thw": grid,
        "mm_token_type_ids": image_type,
        "position_ids": prompt_positions(side, input_ids.shape[1])[:, None, :].expand(3, len(texts), -1),
    }


def prompt_positions(side: int, length: int) -> Int[Tensor, "3 length"]:
    """Multimodal rotary positions (time, row, column) of a prompt with one side x side picture after its first token.

    Text counts on from the largest position before it, as in Qwen2-VL (arXiv 2409.12191). With `length` larger than
    the prompt the answer's positions follow.
    """
    cell = torch.arange(side)
    rows, columns = cell.repeat_interleave(side), cell.repeat(side)
    picture = torch.stack([torch.zeros_like(rows), rows, columns]) + 1
    text = torch.arange(length - 1 - side**2) + 1 + side
    return torch.cat([torch.zeros(3, 1, dtype=torch.long), picture, text.expand(3, -1)], dim=1)


def box_bins(boxes: Float[Tensor, "*batch 4"], size: int) -> Int[Tensor, "*batch 4"]:
    """Boxes x, y, w, h in pixels -> bins x1, y1, x2, y2, each in 0...15."""
    corners = torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)
    return (corners / size * NUM_BINS).floor().long().clamp(0, NUM_BINS - 1)


def bins_box(bins: Int[Tensor, "*batch 4"], size: int) -> Float[Tensor, "*batch 4"]:
    """Bins x1, y1, x2, y2 -> the box x, y, w, h in pixels between bin centres; crossed corners give zero sides."""
    corners = (bins.float() + 0.5) * (size / NUM_BINS)
    return torch.cat([corners[..., :2], (corners[..., 2:] - corners[..., :2]).clamp(min=0)], dim=-1)
