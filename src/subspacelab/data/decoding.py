"""Encoded pictures to upright RGB, as transformers' loader and the Qwen processor make it."""

import struct
import warnings
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow knows and does not decode itself: it starts Ghostscript, asks Windows, or has a stub only."""
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise for bytes that are no picture: it depends on where they are damaged."""


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in small letters, of the formats that are read."""
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in _formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in NOT_READ)


def decode_rgb(encoded: bytes, name: str) -> Image.Image:
    """The first frame in RGB, turned as its EXIF says, transparency on white; ValueError names what cannot be read.

    White is 65535 for 16 bits. Floats are of [0, 1] or of [0, 255], whichever holds them all; floats and 32-bit
    integers beyond go from their own minimum (black) to their own maximum (white). Pictures of more than twice
    `PIL.Image.MAX_IMAGE_PIXELS` are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and of odd metadata; an error is one line of ours
            image = Image.open(BytesIO(encoded), formats=_formats())
            return _on_white(_eight_bits(ImageOps.exif_transpose(image)))
    except _DAMAGE as e:
        reason = "of no known format" if isinstance(e, UnidentifiedImageError) else " ".join(str(e).split())
        raise ValueError(f"{name}: not a picture that can be read ({reason}); restore it or leave it out") from e


def has_known_format(encoded: bytes) -> bool:
    """Whether the first bytes are those of a format that is read; the rest is not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(BytesIO(encoded), formats=_formats()).close()
    except _DAMAGE:
        return False
    return True


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips what is above 255: a 16-bit picture is white then, and one of [0, 1] black."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity among its pixels")
    low, high = _range(values, whole=image.mode != "F")
    return Image.fromarray(np.rint((values - low) * (255 / (high - low or 1))).astype(np.uint8))


def _range(values: np.ndarray, *, whole: bool) -> tuple[float, float]:
    """Black and white of one-channel pictures of more than 8 bits."""
    low, high = float(values.min()), float(values.max())
    white = next((w for w in ((65535,) if whole else (1, 255)) if low >= 0 and high <= w), None)
    return (low, high) if white is None else (0, white)


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
