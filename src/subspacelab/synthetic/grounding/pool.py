"""Scenes as tensors, and a pool of them rendered once before training."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from subspacelab.core.callbacks import Advance, Progress
from subspacelab.synthetic.grounding.scenes import COLOURS, Scene, scene


def scene_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, list[str], Tensor]:
    """Images [n size size 3] uint8, questions, boxes [n 4] float32."""
    images = torch.from_numpy(np.stack([s.image for s in scenes]))
    return images, [s.question for s in scenes], torch.tensor([s.bbox for s in scenes], dtype=torch.float32)


@dataclass(frozen=True)
class ScenePool:
    """Scenes as tensors."""

    images: UInt8[Tensor, "n size size 3"]
    """RGB."""
    questions: list[str]
    """One per picture."""
    boxes: Float[Tensor, "n 4"]
    """x, y, w, h in pixels."""
    colours: Int[Tensor, " n"]
    """Index of the asked colour in COLOURS."""


def render_scenes(seed: int, count: int, size: int, label: str, progress: Progress) -> list[Scene]:
    """Scenes 0...count-1 of set `seed`, in order, drawn by two threads."""
    with progress(label, count, "scenes") as advance, ThreadPoolExecutor(2) as threads:
        return list(_counted(threads.map(lambda i: scene(seed, i, size), range(count), chunksize=16), advance))


def scene_pool(scenes: list[Scene]) -> ScenePool:
    """Stacks scenes of one size."""
    images, questions, boxes = scene_tensors(scenes)
    names = list(COLOURS)
    return ScenePool(images, questions, boxes, torch.tensor([names.index(s.colour) for s in scenes]))
