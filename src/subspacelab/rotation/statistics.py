"""Means and deviations of the measures over groups of weights, with what proves nothing kept apart."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from subspacelab.rotation.groups import Group

DESCRIPTION = ("weight", "module", "layer", "m", "n", "rank", "k", "identity_U", "identity_Vh")
ROTATION = ("rotation_mse", "rotation_rel", "random_mse", "oracle_mse", "floor_rotation_mse")


def metric_columns(layers: pd.DataFrame) -> list[str]:
    """The columns of layers.csv that are measures."""
    return [column for column in layers.columns if column not in DESCRIPTION]


def rotation_side(column: str) -> str | None:
    """`U` or `Vh` for a measure that proves nothing where that side is an identity, None for the others."""
    measure, _, side = column.rpartition("_")
    return side if measure in ROTATION else None


def describe(layers: pd.DataFrame) -> dict[str, Any]:
    """Mean, population deviation and count of each measure; the rotation's over the sides that are no identity."""
    summary: dict[str, Any] = {
        "num_weights": len(layers),
        "num_identity_U": int(layers["identity_U"].sum()),
        "num_identity_Vh": int(layers["identity_Vh"].sum()),
    }
    for column in metric_columns(layers):
        side = rotation_side(column)
        summary[column] = _moments(layers[column] if side is None else layers.loc[~layers[f"identity_{side}"], column])
    return summary


def describe_identities(layers: pd.DataFrame) -> dict[str, Any]:
    """The same of the rotation's measures on identity sides: numbers that would come out so for any matrices."""
    sided = [(column, side) for column in metric_columns(layers) if (side := rotation_side(column))]
    return {column: _moments(layers.loc[layers[f"identity_{side}"], column]) for column, side in sided}


def _moments(values: pd.Series) -> dict[str, float | int | None]:
    known = values.dropna().astype(float)
    if known.empty:
        return {"mean": None, "std": None, "count": 0}
    return {"mean": float(known.mean()), "std": float(known.std(ddof=0)), "count": len(known)}


def module_table(summaries: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """modules.csv: one row per group, `<measure>_mean` and `<measure>_std`, and how many weights there are."""
    rows = []
    for label, summary in summaries.items():
        row: dict[str, Any] = {"module": label}
        for key, value in summary.items():
            if isinstance(value, dict):
                row |= {f"{key}_mean": value["mean"], f"{key}_std": value["std"]}
            else:
                row[key] = value
        rows.append(row)
    return pd.DataFrame(rows)


def curve_table(layers: pd.DataFrame, groups: Iterable[Group]) -> pd.DataFrame:
    """curves.csv: one row per group and layer, the mean of its weights there (usually one)."""
    metrics, identities = metric_columns(layers), ["identity_U", "identity_Vh"]
    curves = []
    for group in groups:
        if group.is_curve:
            rows = layers.set_index("weight").loc[list(group.members)]
            at = rows.assign(layer=pd.Series(group.members)).groupby("layer")
            curve = pd.concat([at[metrics].mean(), at[identities].any()], axis=1).reset_index()
            curves.append(curve.assign(module=group.label))
    empty = pd.DataFrame(columns=["layer", *metrics, *identities, "module"])
    table = pd.concat(curves, ignore_index=True) if curves else empty
    return table[["module", "layer", *identities, *metrics]]
