"""Boxes x, y, width, height in pixels: how much two overlap, and their corners as bins of the picture's side."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_BINS = 16
"""Of a side, where corners are told as location tokens."""


def box_iou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of boxes x, y, w, h, elementwise over the leading axes, which broadcast."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    return inner / union.clamp(min=1e-9)


def corners_box(corners: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Corners x1, y1, x2, y2 -> the box x, y, w, h; crossed corners give zero sides."""
    return torch.cat([corners[..., :2], (corners[..., 2:] - corners[..., :2]).clamp(min=0)], dim=-1)


def box_bins(boxes: Float[Tensor, "*batch 4"], size: int) -> Int[Tensor, "*batch 4"]:
    """Boxes x, y, w, h in pixels -> bins x1, y1, x2, y2, each in 0...15."""
    corners = torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)
    return (corners / size * NUM_BINS).floor().long().clamp(0, NUM_BINS - 1)


def bins_box(bins: Int[Tensor, "*batch 4"], size: int) -> Float[Tensor, "*batch 4"]:
    """Bins x1, y1, x2, y2 -> the box x, y, w, h in pixels between bin centres; crossed corners give zero sides."""
    return corners_box((bins.float() + 0.5) * (size / NUM_BINS))
