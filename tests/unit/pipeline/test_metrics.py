"""Figures held against committed ones."""

import pytest

from subspacelab.pipeline.experiments import read_metrics, shortest_names
from subspacelab.pipeline.metrics import Tolerance, compare_metrics, compared, read_tolerances, require_equal

EXACT = Tolerance("*.count", "a count")
LOOSE = Tolerance("*iou*", "trained", absolute=0.1)
CLOSE = Tolerance("*", "last bits", relative=1e-6)


def test_what_is_within_its_tolerance_is_equal():
    reference = {"a.count": 28.0, "base.iou": 0.0, "mse": 1.0}
    assert (
        compare_metrics(reference, {"a.count": 28.0, "base.iou": 0.1, "mse": 1.0 + 9e-7}, [EXACT, LOOSE, CLOSE]) == []
    )


@pytest.mark.parametrize(
    ("name", "found", "allowed"), [("a.count", 29.0, 0.0), ("base.iou", -0.11, 0.1), ("mse", 1.0 + 2e-6, 1e-6)]
)
def test_what_is_not_is_named_with_both_values(name, found, allowed):
    reference = {"a.count": 28.0, "base.iou": 0.0, "mse": 1.0}
    (difference,) = compare_metrics(reference, reference | {name: found}, [EXACT, LOOSE, CLOSE])
    assert (difference.name, difference.reference, difference.found) == (name, reference[name], found)
    assert difference.allowed == pytest.approx(allowed)


def test_a_metric_that_went_or_came_is_a_difference():
    found = compare_metrics({"old": 1.0}, {"new": 2.0}, [CLOSE])
    assert [(d.name, d.reference, d.found) for d in found] == [("new", None, 2.0), ("old", 1.0, None)]


@pytest.mark.parametrize(("one", "other", "same"), [("nan", "nan", True), ("inf", "inf", True), ("nan", "1", False)])
def test_nothing_but_a_nan_equals_a_nan(one, other, same):
    assert (compare_metrics({"a": float(one)}, {"a": float(other)}, [LOOSE, CLOSE]) == []) == same


def test_what_no_pattern_fits_is_not_compared():
    assert compare_metrics({"x": 1.0}, {"x": 2.0, "y": 3.0}, [LOOSE]) == []
    assert compared({"x": 1.0, "base.iou": 0.5}, [LOOSE]) == {"base.iou": 0.5}


def test_a_metric_has_the_name_that_dvc_and_mlflow_show():
    read = read_metrics(
        {"a/m.json": {"data": {"iou": 0.5, "x": {"y": 1}}}, "b/m.json": {"data": {"iou": 1, "t": "no"}}}
    )
    assert read == {"a/m.json:iou": 0.5, "a/m.json:x.y": 1.0, "b/m.json:iou": 1.0}
    assert shortest_names(read) == {"a/m.json:iou": 0.5, "x.y": 1.0, "b/m.json:iou": 1.0}


def test_differences_end_in_one_line():
    differences = compare_metrics({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, [CLOSE])
    with pytest.raises(ValueError, match="1 metrics are further from the 2 committed ones"):
        require_equal(differences, 2)
    require_equal([], 2)


def test_tolerances_are_read_and_wrong_ones_named(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("tolerances:\n- {metrics: '*', reason: r, relative: 1.0e-6}\n")
    assert read_tolerances(path) == [Tolerance("*", "r", relative=1e-6)]
    path.write_text("tolerances:\n- {metrics: '*', relative: 1.0e-6}\n")
    with pytest.raises(ValueError, match=r"tolerances\[0\].reason"):
        read_tolerances(path)
    path.write_text("x: 1\n")
    with pytest.raises(ValueError, match="expected a list"):
        read_tolerances(path)
