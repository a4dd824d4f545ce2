from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from subspacelab.core import parquet
from subspacelab.data.grounding import SCHEMA, GroundingRow, count_grounding, read_grounding, write_grounding


def _png(colour: str = "red") -> bytes:
    encoded = BytesIO()
    Image.new("RGB", (8, 6), colour).save(encoded, "PNG")
    return encoded.getvalue()


def _row(name: str, answers: tuple[str, ...] = ("one",)) -> GroundingRow:
    return GroundingRow(_png(), f"{name}.png", "Where?", answers, name, (1.0, 2.0, 3.5, 4.0))


def test_round_trip_over_several_row_groups(tmp_path: Path) -> None:
    rows = [_row(str(i), answers=("a",) * (1 + i % 10)) for i in range(7)]
    assert write_grounding(tmp_path / "x.parquet", rows, rows_per_group=3) == 7
    assert list(read_grounding(tmp_path / "x.parquet", batch_rows=2)) == rows
    assert list(read_grounding(tmp_path, limit=4)) == rows[:4]
    assert count_grounding(tmp_path) == 7


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_grounding(tmp_path / f"{name}.parquet", [_row("0"), _row("1")])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_reads_the_shards_of_the_hub_in_order_and_a_plain_answer(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in (1, 0):
        record = {
            "image": {"bytes": _png(), "path": None},
            "question": "q",
            "answer": f"answer {shard}",
            "dataset_id": shard,
            "bbox": [0, 0, 1, 1],
        }
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    rows = list(read_grounding(tmp_path))
    assert [r.answers for r in rows] == [("answer 0",), ("answer 1",)]
    assert [r.dataset_id for r in rows] == ["0", "1"]
    assert rows[0].image().size == (8, 6)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parquet file there"):
        list(read_grounding(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"x\.parquet: not a parquet file"):
        list(read_grounding(tmp_path))
    pq.write_table(pa.table({"question": ["q"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"columns \['image', 'answer', 'dataset_id', 'bbox'\] are missing"):
        list(read_grounding(tmp_path))
    with pytest.raises(ValueError, match="row 7: not a picture that can be read"):
        GroundingRow(b"junk", "", "q", (), "7", (0.0, 0.0, 1.0, 1.0)).image()
    with pytest.raises(ValueError, match="limit: 0 must be at least 1"):
        list(read_grounding(tmp_path, limit=0))


RECORD = {
    "image": {"bytes": _png(), "path": "a.png"},
    "question": "q",
    "answer": ["a"],
    "dataset_id": "d",
    "bbox": [1.0, 2.0, 3.0, 4.0],
}


@pytest.mark.parametrize(
    ("column", "value"),
    [("image", value) for value in (None, b"x", "x", {"bytes": None}, {"bytes": "x"})]
    + [("question", value) for value in (None, 1, b"q", ["q"])]
    + [("answer", value) for value in (None, 1, [1], [None], b"a")]
    + [("dataset_id", value) for value in (None, 1.5, b"d", ["d"])]
    + [("bbox", value) for value in (None, [], [1], [1, None, 3, 4], [1, 2, 3, float("nan")], ["1", "2", "3", "four"])]
    + [("bbox", value) for value in ("1234", [True] * 4, [[1.0]] * 4)],
)
def test_a_value_of_another_type_is_named_with_file_and_row(tmp_path: Path, column: str, value: object) -> None:
    pq.write_table(pa.Table.from_pylist([RECORD | {column: value}]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet: row 1 \(.*\): {column}.*, got .*; correct or drop") as e:
        list(read_grounding(tmp_path))
    assert "\n" not in str(e.value)


def test_the_number_of_a_row_counts_over_batches(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([RECORD] * 5 + [RECORD | {"answer": None}]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="row 6"):
        list(read_grounding(tmp_path, batch_rows=2))


@pytest.mark.parametrize(
    "rows",
    [
        [RECORD | {"bbox": [1.0] * 1_000_000}],
        [RECORD | {"image": {"bytes": bytes(1_000_000), "path": ""}}],
        [RECORD] * 50_000,
    ],
    ids=["values", "bytes", "rows"],
)
def test_some_bytes_that_unpack_to_gigabytes_are_refused_by_what_they_declare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list
) -> None:
    monkeypatch.setattr(parquet, "SMALL_BYTES", 1 << 16)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(ValueError, match=r"x\.parquet: '.*' unpacks to .* values and .* bytes in .* rows"):
        count_grounding(tmp_path)


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    write_grounding(tmp_path / "x.parquet", [_row(str(i)) for i in range(9)])
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:40] = bytes(36)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet: damaged"):
        list(read_grounding(tmp_path))
