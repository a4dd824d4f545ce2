import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from subspacelab.data.grounding import GroundingRow, write_grounding
from subspacelab.data.pictures import Picture, count_pictures, read_pictures, square

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


def test_grey_and_transparent_pictures_become_rgb() -> None:
    for mode in ("L", "RGBA", "P"):
        buffer = BytesIO()
        _image(0).convert(mode).save(buffer, "PNG")
        assert square(Picture("p", buffer.getvalue()), 28).pixels.shape == (28, 28, 3)


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
        (_line("gone.png", CORNERS[0]), "no picture 'gone.png'"),
        (_line("../0.png", CORNERS[0]), "'../0.png' lies outside"),
        (_line("/etc/passwd", CORNERS[0]), "'/etc/passwd' lies outside"),
        (_line("0.png", [1, 2, 3]), "bbox_2d [1, 2, 3] is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, "far"]), "is not [x1, y1, x2, y2]"),
        (_line("0.png", [1, 2, 3, None]), "is not [x1, y1, x2, y2]"),
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
