import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.images import encode, random_image, random_png
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from subspacelab.data.pictures import Picture, looks_like_a_picture, square


def _pixels(encoded: bytes) -> np.ndarray:
    """The picture as it is decoded: a square of 28 is not resized."""
    return square(Picture("p", encoded), 28).pixels.numpy()


RAMP = np.linspace(0, 1, 28 * 28).reshape(28, 28)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "TIFF"),
        ((RAMP * 65535).astype(">u2"), "TIFF"),
        ((RAMP * 65535).astype(np.uint16), "PPM"),
        ((RAMP * 65535).astype(np.uint16), "JPEG2000"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * 1e6 - 5e5).astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32), "PPM"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.float32), "TIFF"),
        ((RAMP * 2 - 1).astype(np.float32), "TIFF"),
    ],
)
def test_a_ramp_from_black_to_white_stays_one(values: np.ndarray, kind: str) -> None:
    pixels = _pixels(encode(Image.fromarray(values), kind))
    # Whole numbers are cut before they are scaled, and JPEG 2000 is lossless here: one grey at most.
    np.testing.assert_allclose(pixels, np.repeat(RAMP[..., None] * 255, 3, axis=2), rtol=0, atol=1)


def _tiff(values: np.ndarray, bits: int = 16, kind: int = 1, photometric: int = 1) -> bytes:
    """A TIFF by hand, for Pillow writes none of these; of 12 bits two values fill three bytes."""
    data = values.tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        data = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)
    tags = {256: 28, 257: 28, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 28, 279: len(data), 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, v) for tag, v in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(
    "encoded",
    [
        _tiff((RAMP * 4095).astype("<u2"), bits=12),
        _tiff((RAMP * 32767).astype("<i2"), kind=2),
        _tiff((RAMP * 65535 - 32768).astype("<i2"), kind=2),
        _tiff((RAMP * (2**32 - 1)).astype("<u4"), bits=32),
        _tiff((65535 - RAMP * 65535).astype("<u2"), photometric=0),
        _tiff((1 - RAMP).astype("<f4"), bits=32, kind=3, photometric=0),
        b"P5 28 28 1023\n" + (RAMP * 1023).astype(">u2").tobytes(),
        b"Pf\n28 28\n-1.0\n" + (RAMP * 1.5).astype("<f4")[::-1].tobytes(),
    ],
)
def test_what_pillow_does_not_tell_of_a_ramp_is_asked_of_its_file(encoded: bytes) -> None:
    np.testing.assert_allclose(_pixels(encoded), np.repeat(RAMP[..., None] * 255, 3, axis=2), rtol=0, atol=1)


def test_a_few_grey_levels_in_floats_stay_dark() -> None:
    levels = np.floor(RAMP * 8).astype(np.float32)
    assert (_pixels(encode(Image.fromarray(levels), "TIFF"))[..., 0] == levels).all()


def test_the_clear_grey_of_16_bits_is_white_as_that_of_8_is() -> None:
    header, data = b"IHDR" + struct.pack(">IIBBBBB", 28, 28, 16, 0, 0, 0, 0), (RAMP > 0.5) * 20_000
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in data)
    chunks = (header, b"tRNS\0\0", b"IDAT" + zlib.compress(rows), b"IEND")
    encoded = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    expected = np.where(data == 0, 255, round(20_000 / 257))
    assert (_pixels(b"\x89PNG\r\n\x1a\n" + encoded)[..., 0] == expected).all()


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    dark = _pixels(encode(Image.fromarray((RAMP * 6553.5).astype(np.uint16))))
    assert dark.max() == 25


@pytest.mark.parametrize("value", [0, 1, 128, 65535])
def test_a_picture_of_one_grey_is_of_that_grey(value: int) -> None:
    of_16 = encode(Image.fromarray(np.full((28, 28), value, np.uint16)))
    of_floats = encode(Image.fromarray(np.full((28, 28), value / 65535, np.float32)), "TIFF")
    for encoded in (of_16, of_floats):
        assert (_pixels(encoded) == round(value / 257)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_pictures_are_as_the_processor_makes_them(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.fromarray(_pixels(random_png(0))).convert(mode)
    encoded = encode(image, kind)
    expected = convert_to_rgb(Image.open(BytesIO(encoded)), return_numpy=True)
    assert np.array_equal(_pixels(encoded), expected)


def test_what_is_transparent_is_white_as_the_processor_makes_it() -> None:
    rgba = np.zeros((28, 28, 4), np.uint8)
    rgba[:, 14:, 3], rgba[:, 20:, 0] = 128, 255
    images = [Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")]
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    encoded = [encode(image) for image in images]
    encoded += [encode(palette, transparency=0), encode(palette, "GIF", transparency=0)]
    encoded += [encode(palette, transparency=bytes([0, 128] + [255] * 254))]
    for content in encoded:
        expected = convert_to_rgb(Image.open(BytesIO(content)), return_numpy=True)
        assert (expected[0, 0] == 255).all()
        assert np.array_equal(_pixels(content), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_upright_as_the_loader_makes_it(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(random_image(0), kind, exif=exif)
    (tmp_path / "x").write_bytes(encoded)
    upright = load_image(str(tmp_path / "x"))
    assert (upright.width, upright.height) == ((40, 30) if orientation < 5 else (30, 40))
    result = square(Picture("p", encoded, (0.0, 0.0, 15.0, 15.0)), 60)
    assert np.array_equal(result.pixels.numpy(), np.asarray(upright.resize((60, 60), Image.Resampling.LANCZOS)))
    assert result.bbox == ((0, 0, 22.5, 30) if orientation < 5 else (0, 0, 30, 22.5))


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = _pixels(encoded)[0, 0]
        assert (red > 250, blue < 5) == (True, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_with_values_that_are_no_numbers_is_named(value: float) -> None:
    broken = np.where(RAMP > 0.5, value, RAMP).astype(np.float32)
    with pytest.raises(ValueError, match=r"p: not a picture that can be read \(NaN or infinity among its pixels\)"):
        _pixels(encode(Image.fromarray(broken), "TIFF"))


@pytest.mark.filterwarnings("error")
def test_large_pictures_are_read_or_named_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 28 * 28 - 1)
    assert _pixels(encode(Image.new("L", (28, 28)))).shape == (28, 28, 3)
    large = Picture("p", encode(Image.new("L", (56, 56))))
    assert not looks_like_a_picture(large)
    with pytest.raises(ValueError, match="p: not a picture that can be read .*decompression bomb"):
        square(large, 28)


def test_a_format_that_another_program_would_decode_is_none() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert not looks_like_a_picture(Picture("p", postscript))
