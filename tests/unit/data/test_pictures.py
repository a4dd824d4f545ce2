import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from subspacelab.data.grounding import GroundingRow, write_grounding
from subspacelab.data.pictures import (
    Picture,
    count_pictures,
    describe_skipped,
    looks_like_a_picture,
    read_pictures,
    skipped_files,
    square,
)

CORNERS = ([1, 2, 11, 22], [0, 0, 40, 30], [5.5, 6, 7, 8.5])
BOXES = [(1.0, 2.0, 10.0, 20.0), (0.0, 0.0, 40.0, 30.0), (5.5, 6.0, 1.5, 2.5)]


def _image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def _png(seed: int) -> bytes:
    buffer = BytesIO()
    _image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def _parquet(folder: Path) -> Path:
    rows = [GroundingRow(_png(i), f"{i}.png", "Where?", ("one",), f"id-{i}", BOXES[i]) for i in range(3)]
    write_grounding(folder / "x.parquet", rows)
    return folder / "x.parquet"


def _line(name: str, corners: object = None, **more: object) -> str:
    row = {"image": [name], "query": "Where?", "response": json.dumps({"bbox_2d": corners}), **more}
    return json.dumps(row, ensure_ascii=False)


def _jsonl(folder: Path) -> Path:
    for i in range(3):
        (folder / f"{i}.png").write_bytes(_png(i))
    lines = [_line(f"./{i}.png", CORNERS[i]) for i in range(3)]
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "x.jsonl"


def _plain_folder(folder: Path) -> Path:
    for i, name in enumerate(("a.png", "b/x.PNG", "c.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(_png(i))
    (folder / "notes.txt").write_text("no picture")
    return folder


KINDS = [
    (_parquet, ["id-0", "id-1", "id-2"], BOXES),
    (_jsonl, ["./0.png", "./1.png", "./2.png"], BOXES),
    (_plain_folder, ["a.png", "b/x.PNG", "c.png"], [None] * 3),
]


@pytest.mark.parametrize(("write", "names", "boxes"), KINDS)
def test_every_kind_gives_pictures_in_order_with_names_and_boxes(
    tmp_path: Path, write: Callable[[Path], Path], names: list[str], boxes: list[object]
) -> None:
    pictures = list(read_pictures(write(tmp_path)))
    assert [p.dataset_id for p in pictures] == names
    assert [p.bbox for p in pictures] == boxes
    assert [p.image_bytes for p in pictures] == [_png(i) for i in range(3)]
    assert len({p.digest for p in pictures}) == 3


@pytest.mark.parametrize("write", [kind[0] for kind in KINDS])
def test_limit_and_count_agree(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    for limit in (None, 1, 2, 3, 9):
        assert len(list(read_pictures(path, limit=limit))) == count_pictures(path, limit=limit) == min(limit or 3, 3)
    with pytest.raises(ValueError, match="limit: 0 must be at least 1"):
        list(read_pictures(path, limit=0))


def test_the_image_of_a_row_may_be_a_plain_name_and_its_box_missing(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png(0))
    rows = [{"image": "0.png"}, {"image": "0.png", "response": "in the corner"}, {"image": "0.png", "response": "{}"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert list(read_pictures(tmp_path / "x.jsonl")) == [Picture("0.png", _png(0))] * 3


def test_square_is_lanczos_and_scales_the_box() -> None:
    result = square(Picture("p", _png(0), (4.0, 6.0, 20.0, 15.0)), 56)
    expected = _image(0).resize((56, 56), Image.Resampling.LANCZOS)
    assert np.array_equal(result.pixels.numpy(), np.asarray(expected))
    assert result.bbox == pytest.approx((4 * 1.4, 6 * 56 / 30, 20 * 1.4, 15 * 56 / 30))
    assert square(Picture("p", _png(0)), 56).bbox is None


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
    pixels = _pixels(_encoded(Image.fromarray(values), kind))
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
    assert (_pixels(_encoded(Image.fromarray(levels), "TIFF"))[..., 0] == levels).all()


def test_the_clear_grey_of_16_bits_is_white_as_that_of_8_is() -> None:
    header, data = b"IHDR" + struct.pack(">IIBBBBB", 28, 28, 16, 0, 0, 0, 0), (RAMP > 0.5) * 20_000
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in data)
    chunks = (header, b"tRNS\0\0", b"IDAT" + zlib.compress(rows), b"IEND")
    encoded = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    expected = np.where(data == 0, 255, round(20_000 / 257))
    assert (_pixels(b"\x89PNG\r\n\x1a\n" + encoded)[..., 0] == expected).all()


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    dark = _pixels(_encoded(Image.fromarray((RAMP * 6553.5).astype(np.uint16))))
    assert dark.max() == 25


@pytest.mark.parametrize("value", [0, 1, 128, 65535])
def test_a_picture_of_one_grey_is_of_that_grey(value: int) -> None:
    of_16 = _encoded(Image.fromarray(np.full((28, 28), value, np.uint16)))
    of_floats = _encoded(Image.fromarray(np.full((28, 28), value / 65535, np.float32)), "TIFF")
    for encoded in (of_16, of_floats):
        assert (_pixels(encoded) == round(value / 257)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_pictures_are_as_the_processor_makes_them(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.fromarray(_pixels(_png(0))).convert(mode)
    encoded = _encoded(image, kind)
    expected = convert_to_rgb(Image.open(BytesIO(encoded)), return_numpy=True)
    assert np.array_equal(_pixels(encoded), expected)


def test_what_is_transparent_is_white_as_the_processor_makes_it() -> None:
    rgba = np.zeros((28, 28, 4), np.uint8)
    rgba[:, 14:, 3], rgba[:, 20:, 0] = 128, 255
    images = [Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")]
    palette = Image.fromarray(rgba[..., :3]).convert("P")
    encoded = [_encoded(image) for image in images]
    encoded += [_encoded(palette, transparency=0), _encoded(palette, "GIF", transparency=0)]
    encoded += [_encoded(palette, transparency=bytes([0, 128] + [255] * 254))]
    for content in encoded:
        expected = convert_to_rgb(Image.open(BytesIO(content)), return_numpy=True)
        assert (expected[0, 0] == 255).all()
        assert np.array_equal(_pixels(content), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_upright_as_the_loader_makes_it(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = _encoded(_image(0), kind, exif=exif)
    (tmp_path / "x").write_bytes(encoded)
    upright = load_image(str(tmp_path / "x"))
    assert (upright.width, upright.height) == ((40, 30) if orientation < 5 else (30, 40))
    result = square(Picture("p", encoded, (0.0, 0.0, 15.0, 15.0)), 60)
    assert np.array_equal(result.pixels.numpy(), np.asarray(upright.resize((60, 60), Image.Resampling.LANCZOS)))
    assert result.bbox == ((0, 0, 22.5, 30) if orientation < 5 else (0, 0, 30, 22.5))


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        encoded = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = _pixels(encoded)[0, 0]
        assert (red > 250, blue < 5) == (True, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_with_values_that_are_no_numbers_is_named(value: float) -> None:
    broken = np.where(RAMP > 0.5, value, RAMP).astype(np.float32)
    with pytest.raises(ValueError, match=r"p: not a picture that can be read \(NaN or infinity among its pixels\)"):
        _pixels(_encoded(Image.fromarray(broken), "TIFF"))


@pytest.mark.filterwarnings("error")
def test_large_pictures_are_read_or_named_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 28 * 28 - 1)
    assert _pixels(_encoded(Image.new("L", (28, 28)))).shape == (28, 28, 3)
    large = Picture("p", _encoded(Image.new("L", (56, 56))))
    assert not looks_like_a_picture(large)
    with pytest.raises(ValueError, match="p: not a picture that can be read .*decompression bomb"):
        square(large, 28)


def test_a_format_that_another_program_would_decode_is_none() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert not looks_like_a_picture(Picture("p", postscript))


def test_every_suffix_that_is_read_is_found_and_the_others_are_counted(tmp_path: Path) -> None:
    kinds = {"a.GIF": "GIF", "b.jfif": "JPEG", "c.ppm": "PPM", "d.avif": "AVIF", "e.tga": "TGA", "f.jp2": "JPEG2000"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(_encoded(_image(0), kind))
    for name in ("g.heic", "h.HEIC", "notes.txt", "LICENSE", "i.eps"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.dataset_id for p in read_pictures(tmp_path)] == list(kinds)
    assert skipped_files(tmp_path) == {".heic": 2, ".txt": 1, "": 1, ".eps": 1}
    assert describe_skipped(Counter({".heic": 2, "": 1})) == "3 files (2 .heic, 1 without a suffix)"
    for name in kinds:
        (tmp_path / name).unlink()
    assert "5 files (2 .heic" in _refusal(tmp_path)


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(_png(0))
    assert [p.dataset_id for p in read_pictures(tmp_path)] == ["caf\\udce9.png"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png(0))
    (tmp_path / "x.jsonl").write_text(_line("0.png", CORNERS[0]), encoding="utf-8-sig")
    assert [p.bbox for p in read_pictures(tmp_path / "x.jsonl")] == BOXES[:1]


@pytest.mark.parametrize("content", [b"", b"junk", _png(0)[:200], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_bytes_that_are_no_picture_name_it(content: bytes) -> None:
    with pytest.raises(ValueError, match="^id-7: not a picture that can be read"):
        square(Picture("id-7", content), 28)


def _read_all(path: Path) -> list[Picture]:
    return list(read_pictures(path))


def _refusal(path: Path, read: Callable[[Path], object] = _read_all) -> str:
    with pytest.raises(ValueError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("read", [_read_all, count_pictures])
@pytest.mark.parametrize("name", ["", "no.parquet", "no.jsonl", "nosuch"])
def test_nothing_to_read_is_named(tmp_path: Path, read: Callable[[Path], object], name: str) -> None:
    assert str(tmp_path / name) in _refusal(tmp_path / name, read)


def test_a_file_without_a_row_is_refused_as_an_empty_folder_is(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    write_grounding(tmp_path / "x.parquet", [])
    for name in ("x.jsonl", "x.parquet"):
        assert name in _refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "expected an object with 'image' and 'response'"),
        ("[1]", "expected an object with 'image' and 'response'"),
        ('{"query": "no picture"}', "expected an object with 'image' and 'response'"),
        ('{"image": [], "response": ""}', "expected an object with 'image' and 'response'"),
        ('{"image": [3]}', "expected an object with 'image' and 'response'"),
        ('{"image": null}', "expected an object with 'image' and 'response'"),
        ("1" * 5000, "expected an object with 'image' and 'response'"),
        ('{"image": "\\ud800.png"}', "no picture '\\ud800.png'"),
        (_line("x" * 300), "no picture 'xxx"),
        (_line("gone.png", CORNERS[0]), "no picture 'gone.png'"),
        (_line("../0.png", CORNERS[0]), "'../0.png' lies outside"),
        (_line("/etc/passwd", CORNERS[0]), "'/etc/passwd' lies outside"),
        (_line("0.png", [1, 2, 3]), "bbox_2d [1, 2, 3] is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, "far"]), "is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, None]), "is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, float("nan")]), "is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, True]), "is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, 10**400]), "is not [x1, y1, x2, y2]"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "0.png").write_bytes(_png(0))
    (folder / "x.jsonl").write_text(f"{_line('0.png', CORNERS[0])}\n{line}\n")
    message = _refusal(folder / "x.jsonl")
    assert words in message
    assert "x.jsonl, line 2" in message


def test_empty_lines_are_passed_over_but_counted_in_the_number(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png(0))
    (tmp_path / "x.jsonl").write_text(f"\n{_line('0.png')}\n\n{{broken\n")
    assert count_pictures(tmp_path / "x.jsonl") == 2
    assert "x.jsonl, line 4" in _refusal(tmp_path / "x.jsonl")


def test_a_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png(0))
    (tmp_path / "x.jsonl").write_text(_line("0.png", CORNERS[0], query="one\u2028two\x85three") + "\n")
    assert [p.bbox for p in read_pictures(tmp_path / "x.jsonl")] == BOXES[:1]
    assert count_pictures(tmp_path / "x.jsonl") == 1
