"""Several learning rates of a method: which is chosen, and the tables of what all of them show."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.unit.nullspace.trainings import known

from subspacelab.nullspace.knowledge import MEASURES
from subspacelab.nullspace.rates import (
    Training,
    at_equal_task,
    choose_rate,
    differences_table,
    equal_task_table,
    knowledge_table,
    read_knowledge,
    trainings_table,
    welch,
    write_knowledge,
)


def trained(rate: float, chosen: bool, *points: tuple[float, float]) -> list[Training]:
    """A training per seed at (recall, task)."""
    return [Training(233 + i, rate, chosen, known(*point)) for i, point in enumerate(points)]


LORA = [*trained(1e-3, True, (0.9, 0.7), (0.7, 0.6)), *trained(2e-3, False, (0.5, 0.9), (0.1, 1.0))]
NULL = [*trained(2e-3, False, (1.0, 0.4), (1.0, 0.5)), *trained(4e-3, True, (0.8, 1.0), (0.9, 0.9))]


def test_the_smallest_rate_within_a_standard_error_of_the_best_is_chosen() -> None:
    # sqrt(0.9 * 0.1 / 200) = 0.0212
    assert choose_rate({1e-3: 0.85, 2e-3: 0.879, 4e-3: 0.9}, 200) == 2e-3
    assert choose_rate({1e-3: 0.85, 2e-3: 0.878, 4e-3: 0.9}, 200) == 4e-3
    assert choose_rate({4e-3: 1.0, 1e-3: 1.0, 2e-3: 1.0}, 200) == 1e-3
    assert choose_rate({3e-3: 0.2}, 200) == 3e-3


def test_the_table_has_the_base_first_a_row_per_rate_and_the_deviation_of_a_sample() -> None:
    table = knowledge_table(known(1, 0), {"lora": LORA, "v2": NULL})
    assert list(table["method"]) == ["base", "lora", "lora", "v2", "v2"]
    assert list(table["chosen"]) == [True, True, False, False, True]
    assert list(table["num_seeds"]) == [1, 2, 2, 2, 2]
    assert table["recall_mean"].tolist() == pytest.approx([1, 0.8, 0.3, 1.0, 0.85])
    spreads = [np.std(values, ddof=1) for values in ([0.9, 0.7], [0.5, 0.1], [1.0, 1.0], [0.8, 0.9])]
    assert table["recall_std"].tolist() == pytest.approx([0, *spreads])
    assert table["recall_uncalibrated_mean"].isna().all()
    assert {f"{m}_{kind}" for m in MEASURES for kind in ("mean", "std")} <= set(table.columns)
    assert len(trainings_table({"lora": LORA, "v2": NULL})) == 8
    assert knowledge_table(None, {}).empty


def test_equal_task_is_read_between_the_neighbouring_rates_of_each_seed() -> None:
    assert at_equal_task(LORA, "recall") == pytest.approx([0.7, 0.4])
    assert at_equal_task(NULL, "recall") == pytest.approx([1 - 0.2 * 2 / 3, 1 - 0.1 * 0.75])
    assert at_equal_task(LORA, "recall_uncalibrated") == []
    assert at_equal_task(LORA[:2], "recall") == [], "one rate has no neighbour"
    table = equal_task_table({"lora": LORA, "one": LORA[:2]})
    assert set(table["method"]) == {"lora"}
    assert table.set_index("measure").loc["recall", "mean"] == pytest.approx(0.55)


def test_differences_are_those_of_welch_at_both_places() -> None:
    table = differences_table({"lora": LORA, "v2": NULL, "one": trained(1e-3, True, (0.5, 0.5))})
    assert set(zip(table["method"], table["other"], strict=True)) == {("lora", "v2")}
    rows = table.set_index(["at", "measure"])
    for at, a, b in (("chosen rate", [0.9, 0.7], [0.8, 0.9]), ("equal task", [0.7, 0.4], [13 / 15, 0.925])):
        found, wanted = rows.loc[(at, "recall")], stats.ttest_ind(a, b, equal_var=False)
        assert found["difference"] == pytest.approx(np.mean(a) - np.mean(b))
        assert (found["p"], found["df"]) == pytest.approx((wanted.pvalue, wanted.df))
    assert math.isnan(rows.loc[("chosen rate", "drift"), "p"]), "the values do not vary"
    same = welch([0.1] * 3, [0.2] * 3)
    assert same["difference"] == pytest.approx(-0.1)
    assert same["standard_error"] == 0
    assert math.isnan(same["p"]), "none of them varies, though the numpy deviation of [0.1] * 3 is not 0"


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_knowledge(tmp_path / "lora.json", known(1, 0), LORA)
    assert read_knowledge(tmp_path / "lora.json") == (known(1, 0), LORA)
    write_knowledge(tmp_path / "none.json", None, [])
    assert read_knowledge(tmp_path / "none.json") == (None, [])
    (tmp_path / "bad.json").write_text('{"base": {"recall": 1}, "trainings": []}')
    with pytest.raises(ValueError, match=r"bad\.json: base\..*Field required"):
        read_knowledge(tmp_path / "bad.json")
