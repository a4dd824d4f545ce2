"""What the page says of rotation: which updates differ from random ones, weight by weight and over depth."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.report.figures import FAR, Line, frames_of, heat_map, lines, whole_numbers
from subspacelab.report.page import Choice, Figure, Headline, Section, Table
from subspacelab.report.results import Results

FOLDER = "reports/rotation"
QUESTION = "How does each stage of training turn the weights, and do the turns of two stages compose?"
STAGES = ("decompose", "compare_rotations")
LABELS = {
    "rotation_mse": "composition error (MSE)",
    "rotation_rel": "composition error (relative)",
    "angle_mean": "mean principal angle, degrees",
    "angle_max": "largest principal angle, degrees",
    "nss": "spectral shift",
    "intruders": "intruder directions",
    "update_norm": "relative norm of the update",
    "update_stable_rank": "stable rank of the update",
    "principal_energy": "energy in the leading frame over that of a random update",
    "unchanged": "share of unchanged entries",
    "cosine": "cosine of the two updates",
}
"""How a measure is called; `_01` is the first link of the chain, `_12` the second, `_02` both together."""
MAIN = ("weight", "module", "layer", "m", "n", "rotation_mse_U", "rotation_mse_U_z", "rotation_mse_Vh", "rotation_mse_Vh_z",
        "angle_mean_02", "angle_mean_02_z", "update_norm_02", "update_stable_rank_02", "principal_energy_02",
        "principal_energy_02_z", "cosine_01_12", "cosine_01_12_z")  # fmt: skip
NOT_MEASURES = {"layer", "gap_k", "identity_U", "identity_Vh"}
LIMIT_Z = 10.0
CONTROLS = {"null_mean": ("random updates", "dash", 1), "floor": ("bf16 noise", "dot", FAR),
            "random": ("random middle basis", "dashdot", FAR), "oracle": ("own middle basis", "dashdot", FAR)}  # fmt: skip


class Null(BaseModel):
    """Of details.json, the null model."""

    standing_out: list[dict[str, Any]] = []


class Details(BaseModel):
    """What is read of details.json."""

    null: Null = Null()
    notes: list[str] = []


def section(results: Results) -> Section:
    """The section of rotation, of the files that are there."""
    metrics = results.json(f"{FOLDER}/metrics.json", dict[str, float]) or {}
    details = results.json(f"{FOLDER}/details.json", Details) or Details()
    layers = results.table(f"{FOLDER}/layers.csv", text=("weight", "module"))
    curves = results.table(f"{FOLDER}/curves.csv", text=("module",), numbers=("layer",))
    modules = results.table(f"{FOLDER}/modules.csv", text=("module",))
    blocks: list[Figure | Table] = []
    if curves is not None and len(curves):
        blocks.append(_curves(curves))
    if modules is not None and (found := _z_map(modules)):
        blocks.append(found)
    if details.null.standing_out:
        blocks.append(_standing_out(details.null.standing_out))
    if layers is not None:
        blocks.append(Table("Every weight", layers, MAIN, "z is the distance from random updates of equal norm, in their "
                            "standard deviations. The error of a square side is zero for any matrices: its cells are rounding.", folded=True))  # fmt: skip
    if modules is not None:
        main = [name for name in modules if name in ("module", "num_weights") or name.endswith(("_ratio", "_z"))]
        blocks.append(Table("Groups of weights", modules, main, "Ratio: over the mean of random updates.", folded=True))
    return Section("rotation", QUESTION, _sentences(metrics, details, layers), _headlines(metrics), blocks)


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    known = [
        ("composition_error_ratio", "composition error", "random updates: 1", ".2f"),
        ("leading_energy", "energy of the updates in the leading frame", "random updates: 1", ".2f"),
        ("stage_cosine", "cosine of the updates of both stages", "random updates: 0", ".3f"),
    ]
    found = []
    for name, label, beside, digits in known:
        if name in metrics:
            z = f", z = {metrics[f'{name}_z']:.1f}" if f"{name}_z" in metrics else ""
            found.append(Headline(label, format(metrics[name], digits), beside + z))
    return found


def _sentences(metrics: dict[str, float], details: Details, layers: pd.DataFrame | None) -> list[str]:
    from subspacelab.rotation.null_model import LARGE_COSINE, LARGE_Z, RATIOS

    found = []
    if "composition_error_ratio" in metrics:
        ratio, z = metrics["composition_error_ratio"], metrics.get("composition_error_z")
        like = RATIOS[0] <= ratio <= RATIOS[1] or (z is not None and abs(z) <= LARGE_Z)
        verdict = "like random updates of equal norm" if like else "unlike random updates of equal norm"
        found.append(f"The turns of the two stages compose {verdict}: their error is {ratio:.2f} times as large as that of such updates.")
    if "leading_energy" in metrics:
        energy = metrics["leading_energy"]
        how = "more than" if energy > RATIOS[1] else "less than" if energy < RATIOS[0] else "about as much as"
        found.append(f"The updates have {energy:.2f} times the energy of random ones in the leading directions of the weights, {how} chance gives.")
    if "stage_cosine" in metrics:
        cosine = metrics["stage_cosine"]
        how = "partly goes on in" if cosine > LARGE_COSINE else "partly turns back on" if cosine < -LARGE_COSINE else "hardly shares"
        found.append(f"The second stage {how} the direction of the first (cosine {cosine:.3f}; random updates: 0).")
    outstanding = {each.get("weight") for each in details.null.standing_out}
    if layers is not None and outstanding:
        found.append(f"{len(outstanding)} of {len(layers)} weights stand out from random updates in at least one measure.")
    return found


def label(column: str) -> str:
    """A column's name in words, `angle_mean_02_U` as `mean principal angle, degrees (02, U)`."""
    stem = next((stem for stem in sorted(LABELS, key=len, reverse=True) if column == stem or column.startswith(f"{stem}_")), None)
    if stem is None:
        return column
    rest = column[len(stem) :].strip("_").replace("_", ", ")
    return LABELS[stem] + (f" ({rest})" if rest else "")


def _measures(table: pd.DataFrame) -> list[str]:
    """The columns that are measures: numbers, no control's, not empty."""
    ends = ("_null_mean", "_null_std", "_z", "_std", "_ratio")
    names = [name for name in table if not name.endswith(ends) and not name.startswith(("floor_", "random_", "oracle_"))]
    numeric = [name for name in names if pd.api.types.is_numeric_dtype(table[name]) and table[name].dtype != bool]
    return [name for name in numeric if name not in NOT_MEASURES and table[name].notna().any()]


def _curves(curves: pd.DataFrame) -> Figure:
    names = list(curves["module"].unique())
    measures = _measures(curves)
    views = {label(m): [line for name in names for line in _lines_of(curves[curves["module"] == name], name, m)] for m in measures}
    first = next(iter(views))
    return Figure(
        "rotation-curves",
        "Every measure over the layers",
        "Dashed: random updates of equal norm. Dotted: bf16 noise on the base. Dash-dotted, of the composition error: the middle basis "
        "replaced by a random one (high) and by the end point's own (low). 01 and 12 are the two stages, 02 both together.",
        lines(views[first], "layer", first, **whole_numbers(curves["layer"])),
        frames_of(views),
        [Choice("measure", "measure", list(views))],
        ["{measure}"],
        grouped=True,
        controls=("none", "random updates", "all"),
        free=True,
    )  # fmt: skip


def _lines_of(rows: pd.DataFrame, name: str, measure: str) -> list[Line]:
    """The curve of a group, and one for each control, empty where the measure has none."""
    rows = rows.sort_values("layer")
    identity = f"identity_{measure.rpartition('_')[2]}"
    shown = rows[measure]
    if measure.startswith("rotation_") and identity in rows:
        shown = shown.mask(rows[identity].astype(str) == "True")  # zero for any matrices
    found = [Line(name, rows["layer"].tolist(), shown.tolist(), group=name)]
    tail = measure.removeprefix("rotation_")
    columns = {
        "null_mean": f"{measure}_null_mean",
        "floor": f"floor_{_without_pair(measure)}",
        "random": f"random_{tail}",
        "oracle": f"oracle_{tail}",
    }
    for kind, (words, dash, level) in CONTROLS.items():
        y = rows[columns[kind]] if columns[kind] in rows else pd.Series([None] * len(rows))
        found.append(Line(f"{name}: {words}", rows["layer"].tolist(), y.tolist(), name, level, False, dash, "lines"))
    return found


def _without_pair(measure: str) -> str:
    """`angle_mean_02_U` as `angle_mean_U`: noise has no pair."""
    return "_".join(part for part in measure.split("_") if part not in ("01", "12", "02"))


def _z_map(modules: pd.DataFrame) -> Figure | None:
    """The heat map of all z, groups by measures; None where there is none."""
    columns = [name for name in modules if name.endswith("_z") and modules[name].notna().any()]
    if not columns:
        return None
    z = [modules[columns].iloc[i].tolist() for i in range(len(modules))]
    figure = heat_map(z, [name.removesuffix("_z") for name in columns], modules["module"].tolist(), limit=LIMIT_Z, title="z")
    return Figure(
        "rotation-z",
        "Where the updates differ from random ones",
        "z of each group of weights: red above random updates of equal norm, blue below. Colours end at +-10; hovering shows the number. "
        "z alone is not enough: the tables have the ratios.",
        figure,
        shape="tall",
    )  # fmt: skip


def _standing_out(found: Sequence[dict[str, Any]]) -> Table:
    table = pd.DataFrame(found)
    order = ["weight", "measure", "value", "ratio", "z"]
    columns = [name for name in order if name in table] + [name for name in table if name not in order]
    return Table(
        "What stands out from random updates",
        table[columns],
        note="|z| > 5 and a ratio outside 0.8 to 1.25 (of a cosine: beyond 0.1).",
        folded=True,
    )
