"""Pictures from wherever they lie: a grounding data set (parquet, JSONL) or a plain folder."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from subspacelab.data.grounding import count_grounding, read_grounding

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An encoded picture, which may turn out not to be one."""

    dataset_id: str
    """Names it in reports."""
    image_bytes: bytes
    """PNG, JPEG, ..."""
    bbox: Box | None = None
    """x, y, width, height in the picture's own pixels, where the data set has a box."""

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes: the same picture under two names is the same picture."""
        return hashlib.sha256(self.image_bytes).hexdigest()


@dataclass(frozen=True)
class SquarePicture:
    """A picture as a vision tower takes it."""

    pixels: UInt8[Tensor, "size size 3"]
    """RGB."""
    bbox: Box | None
    """The box in these pixels."""


def square(picture: Picture, size: int) -> SquarePicture:
    """Decodes to RGB and resizes to `size` x `size` by LANCZOS; bytes that are no picture are a ValueError."""
    try:
        image = Image.open(BytesIO(picture.image_bytes)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:  # what Pillow's decoders raise
        raise ValueError(f"{picture.dataset_id}: not a picture that can be read ({e})") from e
    x_scale, y_scale = size / image.width, size / image.height
    pixels = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.LANCZOS)))
    if picture.bbox is None:
        return SquarePicture(pixels, None)
    x, y, width, height = picture.bbox
    return SquarePicture(pixels, (x * x_scale, y * y_scale, width * x_scale, height * y_scale))


def looks_like_a_picture(picture: Picture) -> bool:
    """Whether the first bytes are those of a format that is known; the rest is not decoded."""
    try:
        Image.open(BytesIO(picture.image_bytes)).close()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def read_pictures(path: Path, *, limit: int | None = None) -> Iterator[Picture]:
    """Pictures of a parquet file or folder (textVQA_groundingtask_bbox), a JSONL of that task, or a plain folder.

    A JSONL row holds `image` (a path beside the file, or a list of one) and `response` with `bbox_2d` [x1, y1, x2, y2].
    Raises ValueError, naming path or line, when there is nothing to read or a path leads out of the folder.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} must be at least 1; leave it out to read every picture")
    count_pictures(path)
    if path.suffix == ".jsonl":
        found = _read_jsonl(path)
    elif _is_plain_folder(path):
        found = (Picture(file.relative_to(path).as_posix(), file.read_bytes()) for file in _picture_files(path))
    else:
        found = (Picture(row.dataset_id, row.image_bytes, row.bbox) for row in read_grounding(path))
    return islice(found, limit)


def count_pictures(path: Path, *, limit: int | None = None) -> int:
    """How many pictures `read_pictures` gives; none is a ValueError."""
    if path.suffix == ".jsonl":
        count = len(_lines(path))
    elif _is_plain_folder(path):
        count = len(_picture_files(path))
    else:
        count = count_grounding(path)
    if not count:
        raise ValueError(f"{path}: holds no picture; restore it")
    return count if limit is None else min(limit, count)


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not (any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")))


def _picture_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"{path}: neither parquet files nor pictures ({', '.join(SUFFIXES)}) in it")
    return files


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that hold something; JSON may hold U+2028, at which `splitlines` would break."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; pass a parquet file or folder, a .jsonl, or a folder of pictures")
    try:
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text (byte {e.start}); convert it") from e
    return [(number, line) for number, line in lines if line.strip()]


def _read_jsonl(path: Path) -> Iterator[Picture]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            name = row["image"][0] if isinstance(row["image"], list) else row["image"]
            file = path.parent / name
        except (json.JSONDecodeError, RecursionError, KeyError, IndexError, TypeError) as e:
            raise ValueError(f"{where}: expected an object with 'image' and 'response' ({e!r}); correct it") from e
        if "\0" in name or Path(name).is_absolute() or not file.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f"{where}: picture {name!r} lies outside {path.parent}; put it beside the file")
        if not file.is_file():
            raise ValueError(f"{where}: no picture {name!r} in {path.parent}; restore it or drop the line")
        yield Picture(name, file.read_bytes(), _box(row.get("response"), where))


def _box(response: Any, where: str) -> Box | None:
    """The box x, y, width, height of a response that holds one, or None."""
    try:
        content = json.loads(response) if isinstance(response, str) else response
        corners = content["bbox_2d"] if isinstance(content, dict) else None
    except (json.JSONDecodeError, KeyError):
        return None
    if corners is None:
        return None
    if not isinstance(corners, list) or len(corners) != 4 or not all(isinstance(v, int | float) for v in corners):
        raise ValueError(f"{where}: bbox_2d {corners!r} is not [x1, y1, x2, y2]; correct it")
    x1, y1, x2, y2 = (float(v) for v in corners)
    return x1, y1, x2 - x1, y2 - y1
