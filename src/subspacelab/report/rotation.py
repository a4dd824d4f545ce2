"""The page's section on rotation: which updates differ from random ones, weight by weight and over depth."""

from collections.abc import Sequence

import pandas as pd
from pydantic import BaseModel

from subspacelab.report.figures import FAR, Line, choosable, heat_map, whole_numbers
from subspacelab.report.page import Figure, Headline, Section, Table
from subspacelab.report.results import Results, columns_of
from subspacelab.rotation.null_model import LARGE_COSINE, LARGE_Z, RATIOS

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
"""Names of measures; `_01` is the first link of the chain, `_12` the second, `_02` both together."""
MAIN = (
    *("weight", "module", "layer", "m", "n", "rotation_mse_U", "rotation_mse_U_z", "rotation_mse_Vh"),
    *("rotation_mse_Vh_z", "angle_mean_02", "angle_mean_02_z", "update_norm_02", "update_stable_rank_02"),
    *("principal_energy_02", "principal_energy_02_z", "cosine_01_12", "cosine_01_12_z"),
)
OUTSTANDING = ("weight", "measure", "value", "ratio", "z")
NOT_MEASURES = ("layer", "gap_k", "identity_U", "identity_Vh")
CONTROL_STARTS, CONTROL_ENDS = ("floor_", "random_", "oracle_"), ("_null_mean", "_null_std", "_z", "_std", "_ratio")
LIMIT_Z = 10.0
ABOUT_Z = "z is the distance from random updates of equal norm, in their standard deviations."
ABOUT_CURVES = (
    "Dashed: random updates of equal norm. Dotted: bf16 noise on the base. Dash-dotted, of the composition error: the "
    "middle basis replaced by a random one (high) and by the end point's own (low). 01 and 12 are the two stages, "
    "02 both together. Sides that are an identity are left out."
)
ABOUT_MAP = (
    "z of each group of weights: red above random updates of equal norm, blue below. Colours end at +-10; hovering "
    "shows the number. z alone is not enough: the tables have the ratios."
)


class Outstanding(BaseModel, extra="allow"):
    """A measure of a weight that differs from random updates."""

    weight: str = ""


class Null(BaseModel):
    """The null model, as in details.json."""

    standing_out: list[Outstanding] = []


class Details(BaseModel):
    """The keys of details.json that this section reads."""

    null: Null = Null()


def section(results: Results) -> Section:
    """The section on rotation, from the files that exist."""
    metrics = results.metrics(FOLDER)
    outstanding = (results.json(f"{FOLDER}/details.json", Details) or Details()).null.standing_out
    layers = results.table(f"{FOLDER}/layers.csv", text=("weight",))
    curves = results.table(f"{FOLDER}/curves.csv", text=("module",), numbers=("layer",))
    modules = results.table(f"{FOLDER}/modules.csv", text=("module",))
    blocks: list[Figure | Table] = []
    if curves is not None and len(curves):
        blocks += _curves(curves)
    if modules is not None:
        blocks += _z_map(modules)
    if layers is not None:
        rounding = "The error of a square side is zero for any matrices: its cells are rounding."
        blocks.append(Table("Every weight", layers, MAIN, f"{ABOUT_Z} {rounding}"))
    if outstanding:
        blocks.append(_standing_out(outstanding))
    if modules is not None:
        main = [
            name for name in columns_of(modules) if name in ("module", "num_weights") or name.endswith(("_ratio", "_z"))
        ]
        blocks.append(
            Table("Groups of weights", modules, main, f"Ratio: over the mean of random updates. {ABOUT_Z}", True)
        )
    weights = len({each.weight for each in outstanding}), 0 if layers is None else len(layers)
    return Section("rotation", QUESTION, _sentences(metrics, *weights), _headlines(metrics), blocks)


def label(column: str) -> str:
    """A column's name in words: `angle_mean_02_U` as `mean principal angle, degrees (02, U)`."""
    stems = [stem for stem in LABELS if column == stem or column.startswith(f"{stem}_")]
    if not stems:
        return column
    rest = column.removeprefix(max(stems, key=len)).strip("_").replace("_", ", ")
    return LABELS[max(stems, key=len)] + (f" ({rest})" if rest else "")


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    known = {
        "composition_error_ratio": ("composition error", "random updates: 1", ".2f", "composition_error_z"),
        "leading_energy": ("energy of the updates in the leading frame", "random updates: 1", ".2f", ""),
        "stage_cosine": ("cosine of the updates of both stages", "random updates: 0", ".3f", "stage_cosine_z"),
    }
    found = []
    for name, (words, beside, digits, z) in known.items():
        if name in metrics:
            shown = f"{beside}, z = {metrics[z]:.1f}" if z in metrics else beside
            found.append(Headline(words, format(metrics[name], digits), shown, name))
    return found


def _sentences(metrics: dict[str, float], num_outstanding: int, num_weights: int) -> list[str]:
    found = []
    if "composition_error_ratio" in metrics:
        ratio, z = metrics["composition_error_ratio"], metrics.get("composition_error_z", 0.0)
        like = RATIOS[0] <= ratio <= RATIOS[1] or abs(z) <= LARGE_Z
        how = f"compose {'like' if like else 'unlike'} random updates of equal norm"
        found.append(f"The turns of the two stages {how}: their error is {ratio:.2f} times that of such updates.")
    if "leading_energy" in metrics:
        energy = metrics["leading_energy"]
        how = "more than" if energy > RATIOS[1] else "less than" if energy < RATIOS[0] else "about what"
        where = "in the leading directions of the weights"
        found.append(f"The updates have {energy:.2f} times the energy of random ones {where}, {how} chance gives.")
    if "stage_cosine" in metrics:
        cosine = metrics["stage_cosine"]
        how = (
            "partly goes on in"
            if cosine > LARGE_COSINE
            else "partly goes against"
            if cosine < -LARGE_COSINE
            else "hardly shares"
        )
        found.append(f"The second stage {how} the direction of the first (cosine {cosine:.3f}; random updates: 0).")
    if num_outstanding and num_weights:
        found.append(f"{num_outstanding} of {num_weights} weights differ from random updates in at least one measure.")
    return found


def _curves(curves: pd.DataFrame) -> list[Figure]:
    groups = {name: rows.sort_values("layer") for name, rows in curves.groupby("module", sort=False)}
    views = {
        label(measure): [line for name, rows in groups.items() for line in _lines_of(rows, str(name), measure)]
        for measure in _measures(curves)
    }
    layout = whole_numbers(curves["layer"].tolist())
    levels = ("none", "random updates", "all")
    title = "Every measure over the layers"
    return choosable("rotation-curves", title, ABOUT_CURVES, views, "layer", grouped=True, controls=levels, **layout)


def _measures(table: pd.DataFrame) -> list[str]:
    """The columns that are measures: numbers, not a control's, not empty."""
    names = [n for n in columns_of(table) if not n.startswith(CONTROL_STARTS) and not n.endswith(CONTROL_ENDS)]
    kinds = pd.api.types
    numeric = [n for n in names if kinds.is_numeric_dtype(table[n]) and not kinds.is_bool_dtype(table[n])]
    return [n for n in numeric if n not in NOT_MEASURES and table[n].notna().any()]


def _lines_of(rows: pd.DataFrame, name: str, measure: str) -> list[Line]:
    """The curve of a group, and one for each control, empty if the measure has none."""
    layers, tail = rows["layer"].tolist(), measure.removeprefix("rotation_")
    controls = {
        "random updates": (f"{measure}_null_mean", "dash", 1),
        "bf16 noise": (f"floor_{_without_pair(measure)}", "dot", FAR),
        "random middle basis": (f"random_{tail}", "dashdot", FAR),
        "own middle basis": (f"oracle_{tail}", "dashdot", FAR),
    }
    shown, identity = rows[measure], f"identity_{measure.rpartition('_')[2]}"
    if measure.startswith("rotation_") and identity in rows:
        shown = shown.mask(rows[identity].astype(str) == "True")
    found = [Line(name, layers, shown.tolist(), name)]
    for words, (column, dash, level) in controls.items():
        y = rows[column].tolist() if column in rows else [None] * len(rows)
        found.append(Line(f"{name}: {words}", layers, y, name, level, False, dash, "lines"))
    return found


def _without_pair(measure: str) -> str:
    """`angle_mean_02_U` as `angle_mean_U`, since the rounding floor has no pair."""
    return "_".join(part for part in measure.split("_") if part not in ("01", "12", "02"))


def _z_map(modules: pd.DataFrame) -> list[Figure]:
    """The heat map of all z, groups by measures; empty if there is no z."""
    numeric = [name for name in columns_of(modules) if pd.api.types.is_numeric_dtype(modules[name])]
    columns = [name for name in numeric if name.endswith("_z") and modules[name].notna().any()]
    if not columns:
        return []
    measures, names = [name.removesuffix("_z") for name in columns], modules["module"].tolist()
    figure = heat_map(modules[columns].to_numpy().tolist(), measures, names, limit=LIMIT_Z, title="z")
    return [Figure("rotation-z", "Where the updates differ from random ones", ABOUT_MAP, figure, shape="tall")]


def _standing_out(found: Sequence[Outstanding]) -> Table:
    rule = f"|z| > {LARGE_Z:g} and a ratio outside {RATIOS[0]} to {RATIOS[1]} (of a cosine: beyond {LARGE_COSINE})."
    return Table(
        "What differs from random updates", pd.DataFrame([each.model_dump() for each in found]), OUTSTANDING, rule, True
    )
