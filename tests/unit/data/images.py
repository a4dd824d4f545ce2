"""Small pictures of random colours, as arrays and as files."""

from io import BytesIO

import numpy as np
from PIL import Image


def random_image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def random_png(seed: int) -> bytes:
    buffer = BytesIO()
    random_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
