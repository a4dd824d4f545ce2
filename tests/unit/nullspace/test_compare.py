"""Before and after: each expectation held and broken, and which are not asked of a method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.unit.nullspace.verifications import LAYERS, init_of, layer_of, summary_of, trained_of

from subspacelab.nullspace.comparison import FAIL, NOT_APPLICABLE, PASS, compare_stats, failures
from subspacelab.nullspace.plots import draw_before_after
from subspacelab.nullspace.results import Verification

METRICS = {"BX_ratio", "base_BX_ratio", "ABX_ratio", "DeltaX_ratio", "A_weight_norm", "B_weight_norm"}


def with_layer(found: Verification, index: int, **changes: Any) -> Verification:
    stats = list(found.stats)
    stats[index] = layer_of(stats[index].layer, **(vars(stats[index]) | changes))
    return replace(found, stats=tuple(stats))


def failed(table: pd.DataFrame) -> set[tuple[str, str]]:
    return {(row["layer"], row["metric"]) for row in failures(table).to_dict("records")}


def test_an_adapter_as_it_should_be_passes_every_row() -> None:
    table = compare_stats(init_of(), trained_of())
    assert len(table) == (len(LAYERS) + 1) * len(METRICS)
    assert set(table["metric"]) == METRICS
    assert list(table["layer"].unique()) == [*LAYERS, "summary"]
    assert set(table["verdict"]) == {PASS}


@pytest.mark.parametrize(
    "broken",
    [
        {"BX_ratio": 0.06},
        {"base_BX_ratio": 0.03801},
        {"ABX_ratio": 0.9e-4},
        {"DeltaX_ratio": 0.9e-4},
        {"A_weight_norm": 0.0},
        {"B_weight_norm": 4.001},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_one_layer_that_breaks_an_expectation_fails_in_that_row_alone(broken: dict[str, float]) -> None:
    table = compare_stats(init_of(), with_layer(trained_of(), 1, **broken))
    assert failed(table) == {(LAYERS[1], next(iter(broken)))}


@pytest.mark.parametrize("metric", ["ABX_ratio", "DeltaX_ratio", "A_weight_norm"])
def test_what_should_start_at_zero_and_does_not_fails(metric: str) -> None:
    assert failed(compare_stats(with_layer(init_of(), 0, **{metric: 0.01}), trained_of())) == {(LAYERS[0], metric)}


def test_the_summary_has_its_own_rows() -> None:
    assert failed(compare_stats(init_of(), trained_of({"B_weight_norm": 7.5}))) == {("summary", "B_weight_norm")}


@pytest.mark.parametrize(
    ("frozen", "zero", "asked"),
    [
        (False, True, {"ABX_ratio", "DeltaX_ratio", "A_weight_norm"}),
        (True, False, {"BX_ratio", "base_BX_ratio", "DeltaX_ratio", "B_weight_norm"}),
        (False, False, {"DeltaX_ratio"}),
    ],
    ids=["lora", "projected", "v1"],
)
def test_what_a_method_does_not_promise_is_not_asked_of_it(frozen: bool, zero: bool, asked: set[str]) -> None:
    kind = {"down_frozen": frozen, "starts_at_zero": zero}
    wrong = {"BX_ratio": 0.9, "base_BX_ratio": 0.9, "ABX_ratio": 0.0, "A_weight_norm": 0.0, "B_weight_norm": 99.0}
    table = compare_stats(init_of(kind), trained_of(kind | {"DeltaX_ratio": 0.0}, **wrong, DeltaX_ratio=0.0))
    found = {metric: set(rows["verdict"]) for metric, rows in table[table["layer"] != "summary"].groupby("metric")}
    assert {metric for metric, verdicts in found.items() if verdicts != {NOT_APPLICABLE}} == asked
    assert all(found[metric] == {FAIL} for metric in asked)


def test_rounding_of_a_residual_is_no_change_at_the_start() -> None:
    kind = {"starts_at_zero": False}
    assert not failed(compare_stats(init_of(kind, DeltaX_ratio=3e-8), trained_of(kind)))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ((trained_of(), init_of()), "give the statistics of the built adapter"),
        ((trained_of(), trained_of()), "give the statistics of the built adapter"),
        ((init_of({"method": "lora"}), trained_of()), "init is lora, trained is lora_null_v2"),
        ((with_layer(init_of(), 0, layer="other"), trained_of()), "is not the same in both"),
        ((init_of(rank=8), trained_of()), "rank"),
        ((replace(init_of(), calib_dataset="c4"), trained_of()), "c4"),
        ((init_of({"sample": replace(summary_of().sample, seed=1)}), trained_of()), "differ in seed 1 and 233"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(pair: tuple[Verification, Verification], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare_stats(*pair)


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    pairs = [(init_of(), trained_of())]
    a, b = (draw_before_after(tmp_path / name, pairs).read_bytes() for name in ("a.png", "b.png"))
    assert a == b
    assert a.startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_layer_and_expectation() -> None:
    table = compare_stats(init_of(), trained_of())
    assert list(table.columns) == ["method", "layer", "metric", "before", "after", "expected", "verdict"]
    assert len(table) == 24
