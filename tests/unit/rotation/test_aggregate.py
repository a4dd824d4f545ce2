import numpy as np
import pandas as pd
import pytest

from subspacelab.rotation.aggregate import (
    curve_table,
    describe,
    describe_identities,
    module_table,
    rotation_side,
    standing_out,
)
from subspacelab.rotation.groups import Group

LAYERS = pd.DataFrame(
    {
        "weight": ["a.0", "a.1", "b"],
        "module": ["a", "a", "b"],
        "identity_U": [True, False, False],
        "identity_Vh": [True, True, True],
        "rotation_mse_U": [100.0, 2.0, 4.0],
        "rotation_mse_Vh": [1.0, 2.0, 3.0],
        "nss_01": [1.0, 3.0, np.nan],
    }
)


def test_rotations_are_taken_where_they_can_prove_something() -> None:
    got = describe(LAYERS)
    assert got["num_weights"] == 3
    assert (got["num_identity_U"], got["num_identity_Vh"]) == (1, 3)
    assert got["rotation_mse_U"] == {"mean": 3.0, "std": 1.0, "count": 2}
    assert got["rotation_mse_Vh"] == {"mean": None, "std": None, "count": 0}


def test_the_null_model_of_a_mean() -> None:
    """Independent draws per weight: the variance of the mean of n is the sum of theirs over n^2."""
    null = {
        "nss_01_null_mean": [2.0, 2.0, np.nan],
        "nss_01_null_std": [0.3, 0.4, np.nan],
        "nss_01_z": [-3.3, 2.5, np.nan],
    }
    layers = LAYERS.assign(**null)
    got = describe(layers)
    assert "nss_01_z" not in got
    assert got["nss_01"] == {"mean": 2.0, "std": 1.0, "count": 2} | {
        "null_mean": 2.0,
        "null_std": pytest.approx(0.25),
        "ratio": 1.0,
        "z": 0.0,
        "null_count": 2,
    }
    one_draw = describe(layers.assign(nss_01_null_std=np.nan))["nss_01"]
    assert (one_draw["null_std"], one_draw["z"], one_draw["ratio"]) == (None, None, 1.0)
    assert describe(layers[2:])["nss_01"]["null_mean"] is None
    table = module_table({"a": got})
    assert table["nss_01_z"][0] == 0.0


def test_single_weights_that_stand_out_are_listed() -> None:
    null = {
        "nss_01_null_mean": [2.0, 2.0, np.nan],
        "nss_01_null_std": [0.1, 0.4, np.nan],
        "nss_01_z": [-10, 2.5, np.nan],
    }
    (found,) = standing_out(LAYERS.assign(**null))
    assert found == {"weight": "a.0", "measure": "nss_01", "value": 1.0, "ratio": 0.5, "z": -10.0}


def test_identities_are_told_apart() -> None:
    got = describe_identities(LAYERS)
    assert got["rotation_mse_U"] == {"mean": 100.0, "std": 0.0, "count": 1}
    assert got["rotation_mse_Vh"]["count"] == 3
    assert "nss_01" not in got


def test_what_is_undefined_does_not_count() -> None:
    assert describe(LAYERS)["nss_01"] == {"mean": 2.0, "std": 1.0, "count": 2}


@pytest.mark.parametrize(
    ("column", "side"),
    [("rotation_rel_Vh", "Vh"), ("floor_rotation_mse_U", "U"), ("oracle_mse_U", "U"), ("angle_max_01_U", None)],
)
def test_only_rotation_measures_hang_on_identities(column: str, side: str | None) -> None:
    assert rotation_side(column) == side


def test_modules_are_one_row_each() -> None:
    table = module_table({"a": describe(LAYERS[:2]), "b": describe(LAYERS[2:])})
    assert list(table["module"]) == ["a", "b"]
    assert list(table["num_weights"]) == [2, 1]
    assert table["nss_01_mean"][0] == 2.0
    assert np.isnan(table["nss_01_mean"][1])


def test_curves_follow_the_layer_of_the_pattern() -> None:
    groups = [Group("a", {"a.1": 1, "a.0": 0}), Group("b", {"b": None}), Group("both", {"a.0": 5, "b": 5})]
    curves = curve_table(LAYERS, groups)
    assert list(curves["module"]) == ["a", "a", "both"]
    assert list(curves["layer"]) == [0, 1, 5]
    assert list(curves["rotation_mse_Vh"]) == [1.0, 2.0, 2.0]
    assert list(curves["identity_U"]) == [True, False, True]


def test_no_curve_is_an_empty_table_with_columns() -> None:
    curves = curve_table(LAYERS, [Group("b", {"b": None})])
    assert len(curves) == 0
    assert {"module", "layer", "nss_01"} <= set(curves.columns)
