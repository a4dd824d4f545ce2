"""A pool of scenes rendered once before training."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from subspacelab.demo.evaluate import scene_tensors
from subspacelab.demo.scenes import COLOURS, Scene, scene
from subspacelab.reports.progress import progress_bar


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


def render_scenes(seed: int, count: int, size: int, *, label: str) -> list[Scene]:
    """Scenes 0...count-1 of set `seed`, in order, drawn by two threads."""
    with progress_bar(label, total=count, unit="scenes") as advance, ThreadPoolExecutor(2) as threads:
        return list(_counted(threads.map(lambda i: scene(seed, i, size), range(count), chunksize=16), advance))


def _counted(scenes: Iterator[Scene], advance: Callable[[float], None]) -> Iterator[Scene]:
    for drawn in scenes:
        advance(1)
        yield drawn


def scene_pool(scenes: list[Scene]) -> ScenePool:
    """Stacks scenes of one size."""
    images, questions, boxes = scene_tensors(scenes)
    names = list(COLOURS)
    return ScenePool(images, questions, boxes, torch.tensor([names.index(s.colour) for s in scenes]))
