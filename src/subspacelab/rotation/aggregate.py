"""Means and deviations of the measures over groups of weights, and notes on their limits."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from subspacelab.rotation.chain import Chain
from subspacelab.rotation.groups import Group
from subspacelab.rotation.metrics import MIN_GAP
from subspacelab.rotation.null_model import (
    ALL_SUFFIXES,
    LINK_MEASURES,
    MEASURES,
    SUFFIXES_OF,
    Null,
    false_alarm_rate,
    stands_out,
)

DESCRIPTION = ("weight", "module", "layer", "from", "to", "m", "n", "rank", "k", "identity_U", "identity_Vh")
IDENTITIES = ("identity_U", "identity_Vh")
ALL_MEASURES = (*MEASURES, *LINK_MEASURES)
ERROR = "composition_error"
ROTATION = ("rotation_mse", "rotation_rel", "random_mse", "oracle_mse", "floor_rotation_mse")


def number_columns(layers: pd.DataFrame) -> list[str]:
    """The columns of layers.csv that are measures or belong to null models."""
    return [column for column in layers.columns if column not in DESCRIPTION]


def null_measures(layers: pd.DataFrame, model: str = "gaussian") -> list[str]:
    """The measures in layers.csv that have a null model."""
    return [column for column in ALL_MEASURES if f"{column}_{SUFFIXES_OF[model][0]}" in layers]


def metric_columns(layers: pd.DataFrame) -> list[str]:
    """The columns of layers.csv that are measures."""
    nulls = {f"{column}_{suffix}" for column in ALL_MEASURES for suffix in ALL_SUFFIXES}
    return [column for column in number_columns(layers) if column not in nulls]


def rotation_side(column: str) -> str | None:
    """`U` or `Vh` for a measure that is trivial if that side is an identity; None for the others."""
    measure, _, side = column.rpartition("_")
    return side if measure in ROTATION else None


def describe(layers: pd.DataFrame) -> dict[str, Any]:
    """Mean, population deviation and count of each measure; for the rotation, over the sides that are not identities.

    If there is a null model: `null_mean`, `null_std`, `ratio` and `z` of the mean over its `null_count` weights; for
    null models other than the Gaussian `spectrum_mean` and so on.
    """
    summary: dict[str, Any] = {"num_weights": len(layers)}
    summary |= {f"num_{column}": int(layers[column].sum()) for column in IDENTITIES if column in layers}
    for column in metric_columns(layers):
        side = rotation_side(column)
        summary[column] = _moments(layers[column] if side is None else layers.loc[~layers[f"identity_{side}"], column])
    for model in SUFFIXES_OF:
        for column in null_measures(layers, model):
            summary[column] |= _null_moments(layers, column, model)
    return summary


def _null_moments(layers: pd.DataFrame, column: str, model: str = "gaussian") -> dict[str, float | int | None]:
    """The mean of a measure against that of random updates, drawn independently for each of the n weights.

    The mean of n such updates has the deviation sqrt(sum of the weights' variances) / n. As for single weights, the
    error of the null mean itself is ignored: with N draws, z is too large by a factor of up to sqrt(1 + 1 / N).
    """
    means, deviations, _ = (f"{column}_{suffix}" for suffix in SUFFIXES_OF[model])
    keys = ["null_mean", "null_std", "ratio", "z", "null_count"]
    keys = [key if model == "gaussian" else f"{model}_{key.removeprefix('null_')}" for key in keys]
    rows = layers.dropna(subset=[column, means])
    if rows.empty:
        return dict(zip(keys, (None, None, None, None, 0), strict=True))
    mean, expected = rows[column].mean(), rows[means].mean()
    deviation = math.sqrt(rows[deviations].pow(2).sum(skipna=False)) / len(rows)
    null = Null(expected, None if math.isnan(deviation) else deviation)
    ratio = mean / expected if expected else None
    return dict(zip(keys, (expected, null.std, ratio, null.z(mean), len(rows)), strict=True))


def headline(layers: pd.DataFrame) -> dict[str, float]:
    """The headline numbers of a comparison, each beside the value for random updates; means over the weights.

    `composition_error_ratio` is the composition error, on the sides that are not identities, over that of random
    updates of equal norm, and `composition_error_z` its z. `leading_energy` and `stage_cosine` are principal_energy_02
    and cosine_01_12; the mean of this cosine over random updates is 0. Numbers that could not be measured are missing.
    """
    sides = pd.concat([_composition_errors(layers, side) for side in ("U", "Vh")])
    error, energy, cosine = (
        _moments(rows[column]) | (_null_moments(rows, column) if f"{column}_null_mean" in rows else {})
        for rows, column in ((sides, ERROR), (layers, "principal_energy_02"), (layers, "cosine_01_12"))
    )
    found = {
        f"{ERROR}_ratio": error.get("ratio"),
        f"{ERROR}_z": error.get("z"),
        "leading_energy": energy["mean"],
        "leading_energy_random": energy.get("null_mean"),
        "stage_cosine": cosine["mean"],
        "stage_cosine_z": cosine.get("z"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def link_headline(links: pd.DataFrame) -> dict[str, float]:
    """The headline numbers for two, or more than three, checkpoints: means over all weights and links.

    `update_norm` and `unchanged` say how much the weights changed; `angle_mean` (degrees) and `leading_energy` (1 for a
    random update) in which directions. `_ratio` is the ratio to, and `_z` the z against, random updates of equal norm.
    """
    angle, energy = (
        _moments(links[column]) | (_null_moments(links, column) if f"{column}_null_mean" in links else {})
        for column in ("angle_mean", "principal_energy")
    )
    found = {
        "update_norm": _moments(links["update_norm"])["mean"],
        "unchanged": _moments(links["unchanged"])["mean"],
        "angle_mean": angle["mean"],
        "angle_mean_ratio": angle.get("ratio"),
        "angle_mean_z": angle.get("z"),
        "leading_energy": energy["mean"],
        "leading_energy_z": energy.get("z"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _composition_errors(layers: pd.DataFrame, side: str) -> pd.DataFrame:
    """rotation_mse and its null model on one side of the weights, if that side is not an identity."""
    rows = layers.loc[~layers[f"identity_{side}"]].filter(regex=f"^rotation_mse_{side}(_|$)")
    return rows.rename(columns=lambda column: column.replace(f"rotation_mse_{side}", ERROR))


def standing_out(layers: pd.DataFrame, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every measure of every weight that differs from a Gaussian update's by the rule of `null_model.stands_out`.

    For each of the `others`, further null models: `<model>_z`, and whether the measure stands out against that model,
    too.
    """
    found = []
    for column in null_measures(layers):
        for row in layers.dropna(subset=[column, f"{column}_null_std"]).to_dict("records"):
            value, null = row[column], _null_of(row, column, "gaussian")
            if null is not None and stands_out(column, value, null):
                ratio = value / null.mean if null.mean else None
                link = {end: row[end] for end in ("from", "to") if end in row}
                entry = {"weight": row["weight"], "measure": column, "value": value, "ratio": ratio}
                found.append(link | entry | {"z": null.z(value)} | _against(row, column, others))
    return found


def _null_of(row: Mapping[Hashable, Any], column: str, model: str) -> Null | None:
    mean, deviation = (row.get(f"{column}_{suffix}") for suffix in SUFFIXES_OF[model][:2])
    return None if mean is None or pd.isna(mean) else Null(mean, None if pd.isna(deviation) else deviation)


def _against(row: Mapping[Hashable, Any], column: str, others: Sequence[str]) -> dict[str, Any]:
    nulls = {model: null for model in others if (null := _null_of(row, column, model)) is not None}
    found: dict[str, Any] = {f"{model}_z": null.z(row[column]) for model, null in nulls.items()}
    return found | {f"{model}_stands_out": stands_out(column, row[column], null) for model, null in nulls.items()}


def say_findings(summary: Mapping[str, Any], measures: Iterable[str]) -> str:
    """One sentence of means over the weights; it names a measure only if the measure stands out."""
    norms = [summary[column]["mean"] for column in ("update_norm_02", "update_norm") if column in summary]
    if norms and norms[0] == 0:
        return "no weight moved"
    found: dict[str, Null] = {}
    for column in measures:
        moments = summary.get(column, {})
        if moments.get("null_count") and moments["null_std"] is not None:
            found[column] = Null(moments["null_mean"], moments["null_std"])
    if not found:
        return "no measure has a null model with a deviation, which takes two draws: nothing is told from random"
    out = [column for column, null in found.items() if stands_out(column, summary[column]["mean"], null)]
    told = "; ".join(
        f"{c} {summary[c]['mean']:.3g} (random {found[c].mean:.3g}, z {found[c].z(summary[c]['mean']) or math.inf:.3g})"
        for c in out
    )
    rest = ", ".join(column for column in found if column not in out)
    parts = [f"unlike random updates of equal norm: {told}"] if out else []
    return "; ".join([*parts, *([f"as theirs on average, and so no finding: {rest}"] if rest else [])])


def describe_identities(layers: pd.DataFrame) -> dict[str, Any]:
    """The rotation measures on identity sides, whose values are the same for any matrices."""
    sided = [(column, side) for column in metric_columns(layers) if (side := rotation_side(column))]
    return {column: _moments(layers.loc[layers[f"identity_{side}"], column]) for column, side in sided}


def _moments(values: pd.Series) -> dict[str, float | int | None]:
    known = values.dropna().astype(float)
    if known.empty:
        return {"mean": None, "std": None, "count": 0}
    return {"mean": float(known.mean()), "std": float(known.std(ddof=0)), "count": len(known)}


def module_table(summaries: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """modules.csv: one row per group: `<measure>_mean`, `_std`, the null model's columns, the number of weights."""
    rows = []
    for label, summary in summaries.items():
        row: dict[str, Any] = {"module": label}
        for key, value in summary.items():
            if isinstance(value, dict):
                row |= {f"{key}_{part}": number for part, number in value.items() if "count" not in part}
            else:
                row[key] = value
        rows.append(row)
    return pd.DataFrame(rows)


def curve_table(layers: pd.DataFrame, groups: Iterable[Group]) -> pd.DataFrame:
    """curves.csv: one row per group and layer, with the mean over its weights there (usually one)."""
    metrics = [column for column in number_columns(layers) if not column.endswith("_z")]
    identities = [column for column in IDENTITIES if column in layers]
    curves = []
    for group in groups:
        if group.is_curve:
            rows = layers.set_index("weight").loc[list(group.members)]
            at = rows.assign(layer=pd.Series(group.members)).groupby("layer")
            # Copied, as pandas warns of frames with more than 100 pieces in memory.
            curve = pd.concat([at[metrics].mean(), at[identities].any()], axis=1).copy().reset_index()
            curves.append(curve.assign(module=group.label))
    empty = pd.DataFrame(columns=["layer", *metrics, *identities, "module"])
    table = pd.concat(curves, ignore_index=True) if curves else empty
    return table[["module", "layer", *identities, *metrics]]


def note_limits(layers: pd.DataFrame, chain: Chain, null_draws: int = 0) -> list[str]:
    """Sentences on the limits of these numbers: dtypes, gaps, truncation, complete bases, square weights, draws."""
    labels = chain.labels
    notes = [*dict.fromkeys(note for checkpoint in chain.checkpoints for note in checkpoint.notes)]
    notes += [
        f"{count} weights are stored as {', '.join(f'{t} in {c}' for t, c in zip(types, labels, strict=True))}: "
        "their updates hold the rounding from one type to the other"
        for types, count in Counter(map(chain.storage, chain.names)).items()
        if len(set(types)) > 1
    ]
    had_back = chain.num_streamed < len(chain.checkpoints)
    wide = sum(
        had_back and chain.is_full(name) and not {"F16", "BF16"}.issuperset(chain.storage(name)) for name in chain.names
    )
    if wide:
        notes.append(
            f"in {wide} weights stored in 32 bits or more, an entry that moved by less than their float32 factors can "
            "tell (some 5e-7 of a typical entry) counts as unchanged and is no part of the update"
        )
    links = layers
    layers = layers.drop_duplicates("weight")
    narrow = int((layers["gap_k"] < MIN_GAP).sum())
    if narrow:
        notes.append(
            f"in {narrow} weights the gap sigma_k / sigma_(k+1) is below {MIN_GAP}: the leading k directions are "
            "hardly determined, and angle_max_* is empty"
        )
    truncated = sum(not chain.is_full(name) for name in chain.names)
    if truncated:
        notes.append(
            f"{truncated} weights keep only their leading singular triples: update_*, unchanged_*, principal_energy_*, "
            "cosine_01_12, floor_* and the null models need all of them and are empty"
        )
    for side, size in (("U", "m"), ("Vh", "n")):
        whole = int((layers["k"] == layers[size]).sum())
        if whole:
            notes.append(
                f"in {whole} weights the {side} side has only k directions: its principal angles are 0 for any matrices"
            )
    identities = int((layers["identity_U"] & layers["identity_Vh"]).sum()) if "identity_U" in layers else 0
    if identities:
        notes.append(
            f"{identities} weights are square, an identity on both sides: rotation_mse says nothing of them "
            "(decompose with a rank below their size to test them)"
        )
    unchanged = links["unchanged_02" if "unchanged_02" in links else "unchanged"]
    sparse = links.loc[(unchanged > 0.5) & (unchanged < 1), "weight"].nunique()
    if null_draws and sparse:
        notes.append(
            f"in {sparse} weights more than half of the entries are unchanged: random updates spread over all entries, "
            "and an update of few rows differs from theirs by that alone"
        )
    if null_draws > 1:
        rates = " and ".join(f"|z| > {z} in {false_alarm_rate(z, null_draws):.2g}" for z in (3, 5))
        notes.append(
            f"z of a weight rests on {null_draws} random updates: by chance alone {rates} of the columns, more often "
            "of angles and composition errors, which are skewed (energy and cosine need no draws: 0.003 and below 1e-4 "
            "from k = 16 on)"
        )
    return notes
