"""Encoded pictures to upright RGB, as transformers' loader and the Qwen processor convert them.

Run as a program, it decodes the pictures that `DecodePool` sends. It imports nothing of torch, so that it starts fast.
"""

import json
import os
import signal
import struct
import sys
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow lists but does not decode itself: it would start Ghostscript, ask Windows, or has only a stub."""
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of a TIFF file."""
WHITE_IS_ZERO = 0
WHITE = {12: 4095, 16: 65535, 32: 65535}
"""Bits per channel -> the brightest whole number; 32-bit files usually hold 16-bit values."""
LIGHT = 16
"""Floats whose maximum is above 1 and at most this value are amounts of light, not values up to 255."""
JPEG_QUALITY = 90
"""Quality of the pictures that are kept for display."""
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""Exceptions of Pillow's decoders for bytes that are not a picture; which one depends on the position of the damage."""


@cache
def picture_suffixes() -> frozenset[str]:
    """File suffixes, in lower case, of the formats that are read."""
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in _formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in NOT_READ)


def decode_rgb(encoded: bytes, name: str) -> Image.Image:
    """The first frame in RGB, turned by its EXIF tag, transparent parts on white; ValueError, naming it, if unreadable.

    White is 65535 for 16 bits and 4095 for 12. Floats are taken as [0, 1] or as [0, 255], whichever range holds them
    all. Floats and 32-bit integers beyond these ranges, and floats up to 16 that are not whole numbers, are scaled from
    their minimum (black) to their maximum (white). Pictures of more than twice `PIL.Image.MAX_IMAGE_PIXELS` are
    refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and of odd metadata; an error is one line of ours
            image = Image.open(BytesIO(encoded), formats=_formats())
            stored = getattr(image, "tag_v2", {})  # a picture that is turned has none
            tags = {tag: stored[tag] for tag in (BITS, PHOTOMETRIC, SAMPLE_FORMAT) if tag in stored}
            return _on_white(_eight_bits(ImageOps.exif_transpose(image), tags))
    except _DAMAGE as e:
        reason = "of no known format" if isinstance(e, UnidentifiedImageError) else " ".join(str(e).split())
        raise ValueError(f"{name}: not a picture that can be read ({reason}); restore it or leave it out") from e


@dataclass(frozen=True)
class DecodedSquare:
    """A picture as a square of RGB."""

    width: int
    """Width of the upright picture before resizing."""
    height: int
    """Height of the upright picture before resizing."""
    pixels: bytes
    """uint8 [size, size, 3], row by row."""
    jpeg: bytes
    """The same square as a small JPEG, for display."""


def decode_square(encoded: bytes, name: str, size: int) -> DecodedSquare:
    """`decode_rgb`, resized to `size` x `size` by LANCZOS."""
    image = decode_rgb(encoded, name)
    pixels, kept = image.resize((size, size), Image.Resampling.LANCZOS).tobytes(), BytesIO()
    # From the pixels alone: a file's comments would be kept with it.
    Image.frombytes("RGB", (size, size), pixels).save(kept, format="JPEG", quality=JPEG_QUALITY)
    return DecodedSquare(image.width, image.height, pixels, kept.getvalue())


READY = b"ready\n"


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Writes READY, then answers requests one after another until the input ends.

    A request is a line of JSON {name, size, bytes} and that many bytes of an encoded picture. A reply is a line {width,
    height, pixels, jpeg} and that many bytes of pixels and of JPEG, or a line {error}.
    """
    replies.write(READY)
    replies.flush()
    while line := requests.readline():
        asked = json.loads(line)
        try:
            found = decode_square(requests.read(asked["bytes"]), asked["name"], asked["size"])
        except ValueError as e:
            replies.write(json.dumps({"error": str(e)}).encode() + b"\n")
        else:
            sizes = {"pixels": len(found.pixels), "jpeg": len(found.jpeg)}
            head = json.dumps({"width": found.width, "height": found.height, **sizes}).encode()
            replies.writelines((head, b"\n", found.pixels, found.jpeg))
        replies.flush()


def has_known_format(encoded: bytes) -> bool:
    """Whether the first bytes belong to a format that is read; the rest is not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(BytesIO(encoded), formats=_formats()).close()
    except _DAMAGE:
        return False
    return True


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Converts to 8 bits by scaling; Pillow clips at 255 instead, so that 16 bits become white and [0, 1] black.

    `tags` are those of a TIFF file: Pillow reads 12 bits as 16, unsigned 32 bits as signed, and ignores that 0 may mean
    white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    bits, kind = (tags.get(tag, (default,))[0] for tag, default in ((BITS, 16), (SAMPLE_FORMAT, 1)))
    stored = np.asarray(image)
    values = (stored.view(np.uint32) if (image.mode, bits, kind) == ("I", 32, 1) else stored).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity among its pixels")
    low, high = _range(values, None if image.mode == "F" else 32767 if (bits, kind) == (16, 2) else WHITE.get(bits))
    grey = (values - low) * (255 / (high - low or 1))
    grey = 255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def _range(values: np.ndarray, white: int | None) -> tuple[float, float]:
    """The values of black and white in a channel of more than 8 bits; `white` is for whole numbers, None for floats."""
    low, high = float(values.min()), float(values.max())
    if white is None:
        # Light beyond 1, as of a camera, is not 255 times darker than white; a few grey levels are whole numbers.
        of_bytes = high > LIGHT or not (values % 1).any()
        white = 1 if high <= 1 else 255 if of_bytes else 0
    return (0, white) if low >= 0 and high <= white else (low, high)


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends without a word when nobody reads any more
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    serve(sys.stdin.buffer, answers)
