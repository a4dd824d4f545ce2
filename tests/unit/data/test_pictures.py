import json
import os
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.images import encode, random_image, random_png
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from subspacelab.data.grounding import GroundingRow, write_grounding
from subspacelab.data.pictures import (
    Picture,
    count_pictures,
    describe_skipped,
    patchify,
    read_pictures,
    skipped_files,
    square,
)

CORNERS = ([1, 2, 11, 22], [0, 0, 40, 30], [5.5, 6, 7, 8.5])
BOXES = [(1.0, 2.0, 10.0, 20.0), (0.0, 0.0, 40.0, 30.0), (5.5, 6.0, 1.5, 2.5)]


def _parquet(folder: Path) -> Path:
    rows = [GroundingRow(random_png(i), f"{i}.png", "Where?", ("one",), f"id-{i}", BOXES[i]) for i in range(3)]
    write_grounding(folder / "x.parquet", rows)
    return folder / "x.parquet"


def _line(name: str, corners: object = None, **more: object) -> str:
    row = {"image": [name], "query": "Where?", "response": json.dumps({"bbox_2d": corners}), **more}
    return json.dumps(row, ensure_ascii=False)


def _jsonl(folder: Path) -> Path:
    for i in range(3):
        (folder / f"{i}.png").write_bytes(random_png(i))
    lines = [_line(f"./{i}.png", CORNERS[i]) for i in range(3)]
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "x.jsonl"


def _plain_folder(folder: Path) -> Path:
    for i, name in enumerate(("a.png", "b/x.PNG", "c.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(random_png(i))
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
    assert [p.image_bytes for p in pictures] == [random_png(i) for i in range(3)]
    assert len({p.digest for p in pictures}) == 3


@pytest.mark.parametrize("write", [kind[0] for kind in KINDS])
def test_limit_and_count_agree(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    for limit in (None, 1, 2, 3, 9):
        assert len(list(read_pictures(path, limit=limit))) == count_pictures(path, limit=limit) == min(limit or 3, 3)
    with pytest.raises(ValueError, match="limit: 0 must be at least 1"):
        list(read_pictures(path, limit=0))


def test_the_image_of_a_row_may_be_a_plain_name_and_its_box_missing(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(random_png(0))
    rows = [{"image": "0.png"}, {"image": "0.png", "response": "in the corner"}, {"image": "0.png", "response": "{}"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert list(read_pictures(tmp_path / "x.jsonl")) == [Picture("0.png", random_png(0))] * 3


def test_the_kept_square_is_the_picture_without_what_its_file_says() -> None:
    content = encode(random_image(0), "JPEG", comment=b"taken at home", icc_profile=b"x" * 200)
    result = square(Picture("p", content), 56)
    assert b"home" in content
    assert b"home" not in result.jpeg
    kept = Image.open(BytesIO(result.jpeg))
    assert (kept.format, kept.size, kept.info.get("icc_profile")) == ("JPEG", (56, 56), None)
    # JPEG at quality 90, of noise whose colours it halves: brightness alone.
    brightness = [np.asarray(each).astype(float).mean(2).ravel() for each in (kept, result.pixels.numpy())]
    assert np.corrcoef(*brightness)[0, 1] > 0.9


def test_square_is_lanczos_and_scales_the_box() -> None:
    result = square(Picture("p", random_png(0), (4.0, 6.0, 20.0, 15.0)), 56)
    expected = random_image(0).resize((56, 56), Image.Resampling.LANCZOS)
    assert np.array_equal(result.pixels.numpy(), np.asarray(expected))
    assert result.bbox == pytest.approx((4 * 1.4, 6 * 56 / 30, 20 * 1.4, 15 * 56 / 30))
    assert square(Picture("p", random_png(0)), 56).bbox is None


def test_every_suffix_that_is_read_is_found_and_the_others_are_counted(tmp_path: Path) -> None:
    kinds = {"a.GIF": "GIF", "b.jfif": "JPEG", "c.ppm": "PPM", "d.avif": "AVIF", "e.tga": "TGA", "f.jp2": "JPEG2000"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(encode(random_image(0), kind))
    for name in ("g.heic", "h.HEIC", "notes.txt", "LICENSE", "i.eps"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.dataset_id for p in read_pictures(tmp_path)] == list(kinds)
    assert skipped_files(tmp_path) == {".heic": 2, ".txt": 1, "": 1, ".eps": 1}
    assert describe_skipped(Counter({".heic": 2, "": 1})) == "3 files (2 .heic, 1 without a suffix)"
    for name in kinds:
        (tmp_path / name).unlink()
    assert "5 files (2 .heic" in _refusal(tmp_path)


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(random_png(0))
    assert [p.dataset_id for p in read_pictures(tmp_path)] == ["caf\\udce9.png"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(random_png(0))
    (tmp_path / "x.jsonl").write_text(_line("0.png", CORNERS[0]), encoding="utf-8-sig")
    assert [p.bbox for p in read_pictures(tmp_path / "x.jsonl")] == BOXES[:1]


@pytest.mark.parametrize("content", [b"", b"junk", random_png(0)[:200], b"\x89PNG\r\n\x1a\n" + bytes(40)])
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
        (place / "0.png").write_bytes(random_png(0))
    (folder / "x.jsonl").write_text(f"{_line('0.png', CORNERS[0])}\n{line}\n")
    message = _refusal(folder / "x.jsonl")
    assert words in message
    assert "x.jsonl, line 2" in message


def test_empty_lines_are_passed_over_but_counted_in_the_number(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(random_png(0))
    (tmp_path / "x.jsonl").write_text(f"\n{_line('0.png')}\n\n{{broken\n")
    assert count_pictures(tmp_path / "x.jsonl") == 2
    assert "x.jsonl, line 4" in _refusal(tmp_path / "x.jsonl")


def test_a_line_ends_at_a_newline_only(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(random_png(0))
    (tmp_path / "x.jsonl").write_text(_line("0.png", CORNERS[0], query="one\u2028two\x85three") + "\n")
    assert [p.bbox for p in read_pictures(tmp_path / "x.jsonl")] == BOXES[:1]
    assert count_pictures(tmp_path / "x.jsonl") == 1


@pytest.mark.parametrize("size", [224, 448])
def test_equals_the_processor_of_transformers(size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil()([Image.fromarray(i) for i in images], return_tensors="pt")
    pixels, grid = patchify(torch.from_numpy(images))
    assert torch.equal(grid, theirs["image_grid_thw"])
    # Both compute (x / 255 - mean) / std in float32, in another order: values up to 2.7, rounding below 1e-6.
    torch.testing.assert_close(pixels, theirs["pixel_values"], rtol=0, atol=2e-6)


def test_refuses_sides_that_no_cell_divides() -> None:
    with pytest.raises(ValueError, match="30 x 56 are not multiples of 28"):
        patchify(torch.zeros(1, 30, 56, 3, dtype=torch.uint8))
