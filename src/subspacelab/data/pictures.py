"""Pictures from a grounding data set (parquet, JSONL) or a plain folder, and their patches."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from subspacelab.core.files import real_path
from subspacelab.data.decoding import DecodedSquare, decode_square, has_known_format, picture_suffixes
from subspacelab.data.grounding import count_grounding, read_grounding

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """Encoded bytes that should be a picture; decoding may show that they are not."""

    dataset_id: str
    """Name of the picture in reports."""
    image_bytes: bytes
    """The encoded picture (PNG, JPEG, ...)."""
    bbox: Box | None = None
    """x, y, width, height in pixels of the original picture; None if the data set has no box."""

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, by which two names of the same picture are recognised."""
        return hashlib.sha256(self.image_bytes).hexdigest()


@dataclass(frozen=True)
class SquarePicture:
    """A picture in the form that a vision tower takes."""

    pixels: UInt8[Tensor, "size size 3"]
    """RGB."""
    bbox: Box | None
    """The box in these pixels."""
    jpeg: bytes
    """The same picture as a JPEG, for display."""


def square(picture: Picture, size: int) -> SquarePicture:
    """Decodes to RGB and resizes to `size` x `size` by LANCZOS; ValueError if the bytes are not a picture."""
    return squared(decode_square(picture.image_bytes, picture.dataset_id, size), picture.bbox, size)


def squared(found: DecodedSquare, bbox: Box | None, size: int) -> SquarePicture:
    """A decoded picture with its box; the box is given in pixels of the upright picture."""
    pixels = torch.frombuffer(bytearray(found.pixels), dtype=torch.uint8).view(size, size, 3)
    if bbox is None:
        return SquarePicture(pixels, None, found.jpeg)
    x_scale, y_scale = size / found.width, size / found.height
    x, y, width, height = bbox
    return SquarePicture(pixels, (x * x_scale, y * y_scale, width * x_scale, height * y_scale), found.jpeg)


def looks_like_a_picture(picture: Picture) -> bool:
    """Whether the first bytes belong to a known format; the rest is not decoded."""
    return has_known_format(picture.image_bytes)


def read_pictures(path: Path, *, limit: int | None = None) -> Iterator[Picture]:
    """Pictures of a parquet file or folder (textVQA_groundingtask_bbox), a JSONL of that task, or a plain folder.

    A JSONL row holds `image` (a path beside the file, or a list of one) and `response` with `bbox_2d` [x1, y1, x2, y2].
    ValueError, naming path or line, if there is nothing to read, or if a path leads out of the folder.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} must be at least 1; leave it out to read every picture")
    count_pictures(path)
    if path.suffix == ".jsonl":
        found = _read_jsonl(path)
    elif _is_plain_folder(path):
        found = (Picture(_id(file.relative_to(path).as_posix()), file.read_bytes()) for file in _picture_files(path))
    else:
        found = (Picture(row.dataset_id, row.image_bytes, row.bbox) for row in read_grounding(path))
    return islice(found, limit)


def count_pictures(path: Path, *, limit: int | None = None) -> int:
    """Number of pictures that `read_pictures` yields; ValueError if there are none."""
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


def skipped_files(path: Path) -> Counter[str]:
    """Suffix -> number of files in a plain folder that are not taken as pictures; empty for other inputs."""
    files = path.rglob("*") if _is_plain_folder(path) else ()
    suffixes = (file.suffix.lower() for file in files if file.is_file())
    return Counter(suffix for suffix in suffixes if suffix not in picture_suffixes())


def describe_skipped(skipped: Counter[str]) -> str:
    """E.g. `3 files (2 .txt, 1 without a suffix)`."""
    kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in skipped.most_common())
    return f"{skipped.total()} files ({kinds})"


def _picture_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in picture_suffixes() and file.is_file())
    if not files:
        skipped = skipped_files(path)
        others = f"; its {describe_skipped(skipped)} are of no format that is read" if skipped else ""
        raise ValueError(f"{path}: neither parquet files nor pictures (.png, .jpg, ...) in it{others}")
    return files


def _id(name: str) -> str:
    """A file's name as valid text: the system allows bytes in it that are not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, numbered; splits at line feeds only, since JSON may hold U+2028."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; pass a parquet file or folder, a .jsonl, or a folder of pictures")
    try:
        lines = enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text (byte {e.start}); convert it") from e
    return [(number, line) for number, line in lines if line.strip()]


class _Row(BaseModel):
    """One line of a JSONL file."""

    image: str | Annotated[list[str], Field(min_length=1)]
    """A path beside the file, or a list whose first entry is used."""
    response: Any = None
    """A response that may hold a box."""

    @property
    def name(self) -> str:
        return self.image if isinstance(self.image, str) else self.image[0]


_CORNERS = TypeAdapter(tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat])


def _read_jsonl(path: Path) -> Iterator[Picture]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = _Row.model_validate(json.loads(line), strict=True)
        except ValidationError as e:
            reason = f"{'.'.join(map(str, e.errors()[0]['loc']))} {e.errors()[0]['msg']}".strip()
            raise ValueError(f"{where}: expected an object with 'image' and 'response' ({reason}); correct it") from e
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{where}: expected an object with 'image' and 'response' ({e}); correct it") from e
        yield Picture(_id(row.name), _file_beside(path, row.name, where).read_bytes(), _box(row.response, where))


def _file_beside(path: Path, name: str, where: str) -> Path:
    """The picture that a line of `path` names; ValueError if it does not exist, or lies outside the folder."""
    file = path.parent / name
    try:
        if "\0" in name or Path(name).is_absolute() or not real_path(file).is_relative_to(real_path(path.parent)):
            raise ValueError(f"{where}: picture {name!r} lies outside {path.parent}; put it beside the file")
        found = file.is_file()
    except (OSError, UnicodeEncodeError):  # a name that no file can have
        found = False
    if not found:
        raise ValueError(f"{where}: no picture {name!r} in {path.parent}; restore it or drop the line")
    return file


def _box(response: Any, where: str) -> Box | None:
    """The box x, y, width, height in a response, or None."""
    try:
        content = json.loads(response) if isinstance(response, str) else response
    except (ValueError, RecursionError):  # words, and not JSON
        return None
    corners = content.get("bbox_2d") if isinstance(content, dict) else None
    if corners is None:
        return None
    try:
        x1, y1, x2, y2 = _CORNERS.validate_json(json.dumps(corners), strict=True)
    except ValidationError as e:
        raise ValueError(f"{where}: bbox_2d {corners!r} is not [x1, y1, x2, y2]; correct it") from e
    return x1, y1, x2 - x1, y2 - y1


PATCH, MERGE, FRAMES = 14, 2, 2
MERGED_PIXELS = PATCH * MERGE
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def patchify(
    images: UInt8[Tensor, "batch height width 3"],
) -> tuple[Float[Tensor, "patches 1176"], Int[Tensor, "batch 3"]]:
    """`pixel_values` and `image_grid_thw` of Qwen2VLImageProcessor, for pictures whose sides are multiples of 28.

    Each 14x14 patch is a row (channel, frame, y, x), normalised by CLIP's mean and deviation, the frame twice; rows go
    2x2 merge block by merge block, the blocks in raster order.
    """
    batch, height, width, _ = images.shape
    if height % MERGED_PIXELS or width % MERGED_PIXELS:
        raise ValueError(
            f"images: sides {height} x {width} are not multiples of {MERGED_PIXELS}; resize the pictures first"
        )
    rows, columns = height // PATCH, width // PATCH
    blocks = images.view(batch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    blocks = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6)  # batch, block row, block column, row, column, channel, y, x
    patches = blocks.reshape(batch * rows * columns, 3, 1, PATCH * PATCH).float()  # bytes are quicker to rearrange
    scale, shift = 1 / (255 * torch.tensor(STD)), torch.tensor(MEAN) / torch.tensor(STD)
    patches = patches.mul_(scale[:, None, None]).sub_(shift[:, None, None])
    grid = torch.tensor([[1, rows, columns]]).expand(batch, 3)
    return patches.expand(-1, -1, FRAMES, -1).flatten(1), grid.contiguous()
