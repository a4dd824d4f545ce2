"""Every sum once, each with a right solution."""

import re

from subspacelab.data.sums import sums


def test_every_sum_below_100_once_and_right() -> None:
    rows = sums(seed=3)
    pairs = [tuple(map(int, re.findall(r"\d+", row.query))) for row in rows]
    assert sorted(pairs) == [(a, b) for a in range(10, 99) for b in range(10, 90) if a + b < 100]
    for (a, b), row in zip(pairs, rows, strict=True):
        units, tens, result = map(int, row.response.split())
        assert units == a % 10 + b % 10
        assert result == a + b == 10 * tens + units % 10
    assert rows != sums(seed=4)
    assert rows == sums(seed=3)
