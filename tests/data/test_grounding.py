from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from subspacelab.data.grounding import GroundingRow, count_grounding, read_grounding, write_grounding


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
    with pytest.raises(ValueError, match="row 7: its picture cannot be read"):
        GroundingRow(b"junk", "", "q", (), "7", (0.0, 0.0, 1.0, 1.0)).image()
    with pytest.raises(ValueError, match="limit: 0 must be at least 1"):
        list(read_grounding(tmp_path, limit=0))
