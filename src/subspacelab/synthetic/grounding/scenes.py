"""Scenes: a coloured word on a textured background, with a question and a box; single, as a set, or as tensors."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from subspacelab.core.callbacks import Advance, Progress, no_progress
from subspacelab.core.settings import Count, settings
from subspacelab.data.grounding import GroundingRow, write_grounding

T = TypeVar("T")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 60, 235),
    "yellow": (250, 225, 30),
    "white": (250, 250, 250),
    "black": (8, 8, 8),
}
QUESTIONS = ("Where is the {} word?", "What is the {} word?", "Which word is in {}?")
WORD_LIST = """
air ant arm bag bar bat bed bee bus cab can cap car cat cup day dog ear egg elm fan fig fox fun gas gem gym hat
hen hot ice ink jam jar jet key kit leg log map mud nut oak oil one owl pan pen pie pot red rice road rock roof
rope rose rug sea sky star sun tap tea ten tin toy van wax web win yes zip zoo boat bird blue book cake city
coin corn desk door duck fish fork frog gate goat gold hill home iron jazz kite lake lamp leaf lime lion milk
mint moon nest park pear pine pond port rain ring sand ship shoe snow soap song tent tree wave wind wolf wood
bread cloud dream juice
"""
WORDS = tuple(WORD_LIST.split())
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "cmb10.ttf",
)
SPLITS = ("train", "held_out", "rows", "rl_stage1", "rl_stage2")
NUM_WAVES, NUM_BLOBS = 10, 6
NOISE = {7: (2.0, 6.0), 28: (4.0, 12.0), 112: (10.0, 24.0)}  # cells per side: range of the standard deviation
LIGHT = 55.0  # grey levels: red rises from left to right, blue from top to bottom
WORD_HEIGHT, WIDEST = (0.2, 0.4), 0.9  # of the picture's side


@settings
class ScenesConfig:
    """Stage `scenes`: the pictures that the studies read."""

    rows: Count
    """Number of pictures."""
    size: Count
    """Pixels per side."""


@dataclass(frozen=True)
class Scene:
    """A picture with its question, answer and box."""

    image: UInt8[np.ndarray, "size size 3"]
    """RGB."""
    question: str
    """Question that names the asked word by its colour."""
    answer: str
    """The asked word."""
    colour: str
    """Its colour, a key of COLOURS."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height of the asked word's ink, in pixels."""


def scene(seed: int, index: int, size: int) -> Scene:
    """Draws scene `index` of the endless set `seed` at `size` x `size` pixels.

    Everything is drawn in units of the picture's side, from a generator seeded only by (seed, index), so that a scene
    is the same at 224 and at 448 pixels and does not depend on other scenes.
    """
    rng = np.random.default_rng([seed, index])
    canvas = Image.fromarray(_background(rng, size))
    colour, word = str(rng.choice(list(COLOURS))), str(rng.choice(WORDS))
    bbox = _draw_word(canvas, rng, word, colour)
    question = str(rng.choice(QUESTIONS)).format(colour)
    return Scene(np.asarray(canvas), question, word, colour, bbox)


@dataclass(frozen=True)
class SceneSet:
    """The scenes of the "rows" split of a seed, drawn one at a time on demand."""

    rows: int
    """Number of scenes."""
    size: int
    """Pixels per side."""
    seed: int
    """Seed of the study."""

    def __iter__(self) -> Iterator[GroundingRow]:
        """Yields each scene as a JPEG (quality 95) in the schema of textVQA_groundingtask_bbox."""
        for index in range(self.rows):
            drawn = scene(split_seed(self.seed, "rows"), index, self.size)
            encoded = BytesIO()
            Image.fromarray(drawn.image).save(encoded, "JPEG", quality=95, subsampling=0)
            yield GroundingRow(
                image_bytes=encoded.getvalue(),
                image_path=f"scene-{index:05d}.jpg",
                question=drawn.question,
                answers=(drawn.answer,),
                dataset_id=f"{index:05d}",
                bbox=drawn.bbox,
            )

    def save(self, folder: Path, progress: Progress = no_progress) -> None:
        """Writes scenes.parquet, whole or not at all."""
        with progress("draw scenes", self.rows, "scenes") as advance:
            write_grounding(folder / "scenes.parquet", _counted(self, advance))


def _counted(items: Iterable[T], advance: Advance) -> Iterator[T]:
    for item in items:
        yield item
        advance(1)


def split_seed(seed: int, split: str) -> int:
    """The seed of one of a study's disjoint sets of scenes."""
    return len(SPLITS) * seed + SPLITS.index(split)


def _draw_word(
    canvas: Image.Image, rng: np.random.Generator, word: str, colour: str
) -> tuple[float, float, float, float]:
    """Draws the word somewhere inside the picture and returns the box of its ink."""
    size = canvas.width
    font = _font(str(rng.choice(FONTS)), round(rng.uniform(*WORD_HEIGHT) * size))
    left, upper, right, lower = font.getbbox(word)
    if right - left > WIDEST * size:
        font = _font(Path(str(font.path)).name, int(font.size * WIDEST * size / (right - left)))
        left, upper, right, lower = font.getbbox(word)
    room = np.array([size - (right - left), size - (lower - upper)])
    x, y = (int(v) for v in np.round(rng.uniform(0.02, 0.98, 2) * room))
    rgb = tuple(int(c) for c in np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 21, 3), 0, 255))
    ImageDraw.Draw(canvas).text((x - left, y - upper), word, font=font, fill=rgb)
    return (float(x), float(y), float(right - left), float(lower - upper))


def _background(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Oriented waves, blobs and noise at several scales under coloured light from two sides.

    The light is the same in every scene. Positions inside the model are rotary, that is, relative, and without such a
    cue in the picture a small model takes thousands of steps to learn where things are. All terms except the noise are
    sums of separable ones, so that drawing takes a few small matrix products.
    """
    u = (np.arange(size, dtype=np.float32) + 0.5) / size
    rows, columns = _waves(rng, u)
    blob_rows, blob_columns = _blobs(rng, u)
    left = np.concatenate([rows, blob_rows], axis=1)
    right = np.concatenate([columns, blob_columns], axis=0)
    picture = _product(left, right).reshape(size, 3, size).transpose(0, 2, 1)
    for cells, (weak, strong) in NOISE.items():
        grid = 128 + rng.standard_normal((cells, cells, 3), dtype=np.float32) * rng.uniform(weak, strong)
        noise = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
        picture = picture + np.asarray(noise.resize((size, size), Image.Resampling.BILINEAR))
    light = np.float32(LIGHT) * (2 * u - 1)
    picture += np.float32(rng.uniform(110.0, 145.0) - 128 * len(NOISE))
    picture[:, :, 0] += light
    picture[:, :, 2] += light[:, None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def _product(left: Float[np.ndarray, "m k"], right: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "m n"]:
    """left @ right in blocks of rows so small (m k n <= 2^18) that OpenBLAS uses one thread.

    With larger blocks its threads spin beside the drawing ones: ten times the processor time for the same picture.
    """
    rows = max(1, 2**18 // right.size)
    return np.concatenate([left[i : i + rows] @ right for i in range(0, len(left), rows)])


def _waves(
    rng: np.random.Generator, u: Float[np.ndarray, " size"]
) -> tuple[Float[np.ndarray, "size k"], Float[np.ndarray, "k three_size"]]:
    """sin(fy y + fx x + p) = sin(fy y) cos(fx x + p) + cos(fy y) sin(fx x + p), a colour for each wave."""
    frequency = 2 * np.pi * np.exp(rng.uniform(np.log(1.0), np.log(24.0), NUM_WAVES))
    angle, phase = rng.uniform(0, np.pi, NUM_WAVES), rng.uniform(0, 2 * np.pi, NUM_WAVES)
    colour = (rng.normal(0, 1, (NUM_WAVES, 1)) + rng.normal(0, 0.3, (NUM_WAVES, 3))) * rng.uniform(
        3.0, 10.0, (NUM_WAVES, 1)
    )
    y = np.outer(u, frequency * np.sin(angle))
    x = np.outer(frequency * np.cos(angle), u) + phase[:, None]
    columns = np.concatenate([np.cos(x), np.sin(x)])[:, None, :] * np.tile(colour, (2, 1))[:, :, None]
    rows = np.concatenate([np.sin(y), np.cos(y)], axis=1)
    return rows.astype(np.float32), columns.reshape(2 * NUM_WAVES, -1).astype(np.float32)


def _blobs(
    rng: np.random.Generator, u: Float[np.ndarray, " size"]
) -> tuple[Float[np.ndarray, "size k"], Float[np.ndarray, "k three_size"]]:
    """Gaussian blobs, a colour for each."""
    centre, width = rng.uniform(0, 1, (2, NUM_BLOBS)), rng.uniform(0.04, 0.25, NUM_BLOBS)
    colour = rng.normal(0, 20, (NUM_BLOBS, 1)) + rng.normal(0, 6, (NUM_BLOBS, 3))
    rows = np.exp(-(((u[:, None] - centre[0]) / width) ** 2))
    columns = np.exp(-(((u[None, :] - centre[1][:, None]) / width[:, None]) ** 2))
    columns = columns[:, None, :] * colour[:, :, None]
    return rows.astype(np.float32), columns.reshape(NUM_BLOBS, -1).astype(np.float32)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # The fonts that are installed with matplotlib, which is not imported.
    file = distribution("matplotlib").locate_file(f"matplotlib/mpl-data/fonts/ttf/{name}")
    return ImageFont.truetype(str(file), size)


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
    """One question per picture."""
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
