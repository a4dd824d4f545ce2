"""The statistics file (round trip, keys, one line for each defect), and the verdicts at their thresholds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.nullspace.verifications import summary_of, trained_of

from subspacelab.core.files import read_json
from subspacelab.nullspace.results import KEYS, THRESHOLDS, Verdict, read_stats, reading, write_stats


def test_what_is_written_comes_back_and_has_exactly_the_keys(tmp_path: Path) -> None:
    found = trained_of(bound=None, bound_left=None, base_bound=None, base_bound_left=None)
    write_stats(tmp_path / "stats.json", found)
    assert read_stats(tmp_path / "stats.json") == found
    assert set(read_json(tmp_path / "stats.json")) == set(KEYS)
    assert read_json(tmp_path / "stats.json")["num_layers"] == 3


def broken(change: str) -> Any:
    content = json.loads(json.dumps(read_json(Path("good.json"))))
    if change == "no summary":
        del content["summary"]
    elif change == "list":
        content = [content]
    elif change == "unknown key":
        content["extra"] = 1
    elif change == "unknown key of the summary":
        content["summary"]["extra"] = 1
    elif change == "layer without BX_ratio":
        del content["stats"][1]["BX_ratio"]
    elif change == "text for a number":
        content["stats"][2]["A_weight_norm"] = "much"
    elif change == "NaN":
        content["stats"][0]["X_norm"] = float("nan")
    elif change == "unknown grade":
        content["verdicts"][0]["grade"] = "splendid"
    elif change == "stats are no list":
        content["stats"] = {"a": 1}
    elif change == "layer is no object":
        content["stats"][0] = 7
    elif change == "another number of layers":
        content["num_layers"] = 4
    elif change == "no layers":
        content |= {"stats": [], "num_layers": 0}
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no summary", "summary: Field required"),
        ("list", "got list"),
        ("unknown key", "extra: no such key"),
        ("unknown key of the summary", "summary.extra"),
        ("layer without BX_ratio", "stats.1.BX_ratio"),
        ("text for a number", "stats.2.A_weight_norm"),
        ("NaN", "stats.0.X_norm"),
        ("unknown grade", "verdicts.0.grade"),
        ("stats are no list", "stats.a: no such key"),
        ("layer is no object", "stats.0: must be an object"),
        ("another number of layers", "num_layers is 4, stats has 3"),
        ("no layers", "num_layers is 0"),
    ],
)
def test_malformed_files_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stats(Path("good.json"), trained_of())
    Path("bad.json").write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=said.replace(".", r"\.")) as e:
        read_stats(Path("bad.json"))
    assert "bad.json" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_file_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"stats": [')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_stats(tmp_path / "half.json")
    with pytest.raises(ValueError, match="no such file"):
        read_stats(tmp_path / "none.json")


def verdict(metric: str, **changes: object) -> Verdict:
    return next(v for v in reading(summary_of(**changes)) if v.metric == metric)


@pytest.mark.parametrize(
    ("metric", "value", "grade"),
    [
        ("BX_ratio", 0.0999, "good"),
        ("BX_ratio", 0.1, "fair"),
        ("BX_ratio", 0.5, "fair"),
        ("BX_ratio", 0.5001, "bad"),
        ("ABX_ratio", 1.01e-4, "good"),
        ("ABX_ratio", 1e-4, "fair"),
        ("ABX_ratio", 1e-6, "fair"),
        ("ABX_ratio", 0.99e-6, "bad"),
        ("adapter_contribution", 0.0101, "good"),
        ("adapter_contribution", 0.01, "fair"),
        ("adapter_contribution", 0.001, "fair"),
        ("adapter_contribution", 0.00099, "bad"),
    ],
)
def test_thresholds(metric: str, value: float, grade: str) -> None:
    assert THRESHOLDS[metric].grade(value) == grade
    found = verdict(metric, **{metric: value})
    assert (found.value, found.grade) == (value, grade)


def test_the_first_verdict_says_how_many_times_better_than_random() -> None:
    assert "12 times better than a random B (0.5)" in verdict("BX_ratio", BX_ratio=0.0417).text


def test_a_random_b_that_passes_the_threshold_is_told_apart() -> None:
    """r = 128 of d = 11008: 0.108 at random, so that 0.095 is good by the table and no null space."""
    found = verdict("BX_ratio", BX_ratio=0.095, BX_ratio_random=0.1078)
    assert found.grade == "good"
    assert "no better than a random B (0.108, 1.1 times)" in found.text
    assert "likely causes" in found.text


def test_causes_are_named_where_something_is_wrong_and_only_there() -> None:
    assert "likely causes" not in " ".join(v.text for v in reading(summary_of()))
    assert "B was updated" in verdict("BX_ratio", BX_ratio=0.7).text
    assert "A was frozen" in verdict("ABX_ratio", ABX_ratio=0.0).text
    assert "learning rate" in verdict("adapter_contribution", adapter_contribution=0.0).text


def test_a_method_that_trains_b_is_not_blamed_for_it() -> None:
    found = verdict("BX_ratio", BX_ratio=0.7, down_frozen=False, method="lora")
    assert "lora does not keep B in a null space, by its method" in found.text
    assert "B was updated" not in found.text


def test_a_frozen_b_that_never_was_in_a_null_space_is_not_blamed_either() -> None:
    assert "by its method" in verdict("BX_ratio", BX_ratio=0.47, method="frozen_random").text


def test_an_untrained_adapter_has_not_failed_to_learn() -> None:
    text = verdict("ABX_ratio", ABX_ratio=0.0, trained=False).text
    assert "as it was built" in text
    assert "likely causes" not in text


def test_where_a_is_not_zero_at_the_start_the_change_is_told() -> None:
    text = verdict("ABX_ratio", ABX_ratio=0.3, starts_at_zero=False, DeltaX_ratio=0.0123).text
    assert "0.0123" in text
