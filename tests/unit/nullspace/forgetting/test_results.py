"""What a study of forgetting tells in one number, against cases computed by hand."""

import math
from pathlib import Path

import pytest
from tests.unit.nullspace.forgetting.curves import curve_of, known, study_of

from subspacelab.nullspace.forgetting.plots import draw_pareto
from subspacelab.nullspace.forgetting.results import Forgetting, area, at_level

Path_ = list[tuple[float, float]]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ([(0.0, 1.0), (0.5, 0.8), (1.0, 0.4)], 0.5 * 0.9 + 0.5 * 0.6),
        ([(0.0, 1.0), (1.0, 1.0)], 1.0),  # everything learned, nothing forgotten
        ([(0.0, 1.0), (0.0, 1.0)], 0.0),  # nothing learned: worth nothing, however well the old is kept
        ([(0.2, 1.0), (0.6, 0.8), (0.4, 0.9), (0.8, 0.5)], 0.2 * 1.0 + 0.4 * 0.9 + 0.2 * (0.7 + 0.5) / 2),
        ([(0.2, 1.0), (0.1, 0.5), (0.1, 0.4)], 0.2),  # it unlearns: only what the base had
    ],
)
def test_area_is_that_of_recall_where_each_task_score_is_first_reached(path: Path_, wanted: float) -> None:
    assert area(path) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("level", "wanted"), [(0.4, 0.9), (0.2, 1.0), (0.1, 1.0), (0.6, 0.8), (0.7, (0.9 + 3 * 0.5) / 4)]
)
def test_recall_at_a_level_is_linear_where_the_task_first_reaches_it(level: float, wanted: float) -> None:
    path = [(0.2, 1.0), (0.6, 0.8), (0.4, 0.9), (0.8, 0.5)]
    assert at_level(path, level) == pytest.approx(wanted)
    assert math.isnan(at_level(path, 0.81))


def test_rates_are_chosen_on_validation_problems_of_the_first_seed_alone() -> None:
    low = curve_of("lora", 1e-4, 1, known(0.95, 1.0, validation=0.5))  # the best of the test, and keeps everything
    high = curve_of("lora", 1e-3, 1, known(0.1, 0.0, validation=0.9))
    other_seed = curve_of("lora", 1e-3, 2, known(0.1, 0.0, validation=0.0))
    found = study_of(low, high, other_seed)
    assert found.chosen == {"lora": 1e-3}
    assert found.curves_table()["chosen"].tolist() == [True, False, True, True]


def test_of_rates_that_validation_cannot_tell_apart_the_smallest_is_chosen() -> None:
    rates = [curve_of("lora", rate, 1, known(v, 1.0)) for rate, v in ((1e-4, 0.5), (3e-4, 0.87), (1e-3, 0.9))]
    assert study_of(*rates).chosen == {"lora": 3e-4}  # within sqrt(0.9 * 0.1 / 100) = 0.03 of the best


def test_methods_are_compared_at_0_8_of_the_best_task_over_their_seeds() -> None:
    good = [curve_of("good", 1e-3, seed, known(0.5, 1.0), known(1.0, end)) for seed, end in ((1, 0.8), (2, 0.4))]
    poor = curve_of("poor", 1e-3, 1, known(0.5, 0.2))
    found = study_of(poor, *good)
    assert found.level == pytest.approx(0.8)
    table = found.table().set_index("method")
    assert list(table.index) == ["good", "poor"]  # the best area first
    at = [1 - 0.6 * 0.2, 1 - 0.6 * 0.6]
    assert table.loc["good", "recall_at_level_mean"] == pytest.approx(sum(at) / 2)
    assert table.loc["good", "recall_at_level_std"] == pytest.approx(abs(at[0] - at[1]) / math.sqrt(2))
    assert table.loc["good", "recall_area_mean"] == pytest.approx((0.5 + 0.45 + 0.5 + 0.35) / 2)
    assert table.loc["good", "num_seeds"] == 2
    assert math.isnan(table.loc["poor", "recall_at_level_mean"])
    assert math.isnan(table.loc["poor", "task_std"])  # of one seed there is no deviation


def test_a_study_is_saved_and_read_to_the_same(tmp_path: Path) -> None:
    found = study_of(curve_of("lora", 1e-3, 1, known(0.5, 0.9), known(0.9, 0.7)))
    found.save(tmp_path)
    assert Forgetting.load(tmp_path) == found
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "curves.csv", "knowledge.csv", "costs.csv"}
    assert (tmp_path / "curves.csv").read_text().splitlines()[1].startswith("base,,0,True,0,0.0,0.0,1.0,1.0,1.0,3.0")
    (tmp_path / "results.json").write_text('{"curves": []}')
    with pytest.raises(ValueError, match="results.json"):
        Forgetting.load(tmp_path)


def test_the_picture_has_a_curve_per_method_from_the_base_on() -> None:
    found = study_of(*(curve_of(f"m{i}", 1e-3, 1, known(0.5, 0.9), known(0.9, 0.7)) for i in range(9)))
    figure = draw_pareto(None, found)
    axes = figure.axes[0]
    labels = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert labels == [*(f"m{i}" for i in range(9)), "base"]
    assert list(axes.lines[0].get_xdata()) == [0.0, 0.5, 0.9]
    assert list(axes.lines[0].get_ydata()) == [1.0, 0.9, 0.7]
