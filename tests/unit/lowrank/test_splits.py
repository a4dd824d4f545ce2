import hashlib
import random

import pytest

from subspacelab.lowrank.features import split_rows


def _digests(count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]


def _by_picture(digests: list[str], seed: int) -> dict[str, str]:
    return {digests[row]: name for name, rows in split_rows(digests, seed).items() for row in rows}


def test_800_pictures_give_80_for_test_and_80_for_validation() -> None:
    rows = split_rows(_digests(800), 42)
    assert {name: len(found) for name, found in rows.items()} == {"train": 640, "validation": 80, "test": 80}
    assert sorted(row for found in rows.values() for row in found) == list(range(800))
    assert all(found == sorted(found) for found in rows.values())


@pytest.mark.parametrize(("count", "tenth"), [(3, 1), (10, 1), (14, 1), (24, 2), (99, 10), (4370, 437)])
def test_other_numbers_are_shared_as_nearly_as_they_can(count: int, tenth: int) -> None:
    rows = split_rows(_digests(count), 0)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [count - 2 * tenth, tenth, tenth]


def test_copies_of_a_picture_go_together() -> None:
    pictures = _digests(100)
    drawn = random.Random(0)
    rows = pictures + drawn.choices(pictures, k=200)
    drawn.shuffle(rows)
    split = split_rows(rows, 1)
    names = [{rows[row] for row in split[name]} for name in ("train", "validation", "test")]
    assert [len(found) for found in names] == [80, 10, 10]
    assert set.union(*names) == set(pictures)
    assert sum(map(len, split.values())) == 300


def test_order_and_copies_of_the_rows_change_nothing() -> None:
    pictures = _digests(60)
    expected = _by_picture(pictures, 7)
    assert _by_picture(pictures[::-1], 7) == expected
    assert _by_picture(pictures * 2, 7) == expected


def test_a_seed_always_draws_the_same_and_another_seed_differently() -> None:
    pictures = _digests(200)
    assert split_rows(pictures, 3) == split_rows(list(pictures), 3)
    tests = [frozenset(split_rows(pictures, seed)["test"]) for seed in range(5)]
    assert len(set(tests)) == 5


def test_fewer_than_three_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="2 distinct pictures cannot be split in three"):
        split_rows(_digests(2) * 10, 0)
