"""How good a checkpoint is: IoU on held-out scenes, the best constant box, and the rank of its vision features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.demo.decode import decode_boxes
from subspacelab.demo.prompts import encode_prompts
from subspacelab.demo.scenes import Scene
from subspacelab.demo.tokenizer import DemoTokenizer


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on held-out scenes."""

    mean_iou: float
    """Mean IoU of the greedy boxes."""
    mean_iou_se: float
    """Its standard error over the scenes; another training of the same checkpoint may differ by more."""
    num_scenes: int
    """Scenes in the mean."""
    boxes: Float[Tensor, "scenes 4"]
    """The greedy boxes, x, y, w, h in pixels."""
    ious: Float[Tensor, " scenes"]
    """One per scene."""


def box_iou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of boxes x, y, w, h, elementwise over the leading axes, which broadcast."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    return inner / union.clamp(min=1e-9)


def scene_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, list[str], Tensor]:
    """Images [n size size 3] uint8, questions, boxes [n 4] float32."""
    images = torch.from_numpy(np.stack([s.image for s in scenes]))
    return images, [s.question for s in scenes], torch.tensor([s.bbox for s in scenes], dtype=torch.float32)


@torch.no_grad()
def evaluate(
    model: Any, tokenizer: DemoTokenizer, scenes: Sequence[Scene], *, batch_size: int = 32, draws: int | None = None
) -> Evaluation:
    """Mean IoU of the greedy boxes over scenes of one size, or with `draws` of sampled ones; standard error over them.

    `draws` seeds the samples, one per scene at temperature 1: what the policy does, as reinforcement sees it.
    """
    generator = None if draws is None else torch.Generator().manual_seed(draws)
    images, questions, truth = scene_tensors(scenes)
    was_training = model.training
    model.eval()
    parts = []
    for i in range(0, len(scenes), batch_size):
        batch = encode_prompts(tokenizer, images[i : i + batch_size], questions[i : i + batch_size])
        answer = decode_boxes(
            model, tokenizer, batch, size=images.shape[1], temperature=float(draws is not None), generator=generator
        )
        parts.append(answer.boxes)
    model.train(was_training)
    boxes = torch.cat(parts)
    ious = box_iou(boxes, truth)
    return Evaluation(*mean_and_error(ious), len(scenes), boxes, ious)


def mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float]:
    """Mean, and its standard error over these values, std / sqrt(n): it says nothing about another training."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
