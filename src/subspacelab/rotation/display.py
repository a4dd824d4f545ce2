"""Terminal output of the commands of rotation."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from subspacelab.core.errors import printable
from subspacelab.plotting.terminal import print_table, show_number
from subspacelab.rotation.application import Applied, total_sizes
from subspacelab.rotation.auditing import Audit
from subspacelab.rotation.comparison import Comparison
from subspacelab.rotation.extraction import Extracted
from subspacelab.rotation.factors import Decomposition, FactorRecord
from subspacelab.rotation.judgement import Judgement
from subspacelab.rotation.metrics import PAIRS
from subspacelab.rotation.null_model import LARGE_COSINE, LARGE_Z, LINK_MEASURES, MEASURES, RATIOS, Null, stands_out

PER_WEIGHT = {
    "rotation_mse_U": "MSE",
    "rotation_mse_Vh": "MSE",
    "angle_mean_02": "angle",
    "nss_02": "nss",
    "update_stable_rank_02": "stable",
    "principal_energy_02": "energy",
    "cosine_01_12": "cosine",
}
"""Measure -> its column in the table of weights; at most one side of a weight has an MSE that is not an identity."""
MOST_WEIGHTS = 20
ANGLES = (
    "01, 12, 02: mean principal angle of the leading k directions (degrees) from base to stage 1, 1 to 2, base to 2; "
    "half ulp: of half an ulp of bf16 noise; gap: sigma_k / sigma_(k+1); the rest is of 02"
)
COMPOSITION = (
    "U, Vh: MSE of R1 R2 - R3 = -U_0^T (I - U_1 U_1^T) U_2, the tilt of the tall side's column space (an identity on "
    "the other side); / random: over that of random updates of equal norm; basis: with a random middle basis; half "
    "ulp: of half an ulp of bf16 noise"
)
NULL_MODEL = (
    f"means over all weights; * stands out: |z| > {LARGE_Z:g} and a ratio outside {RATIOS[0]} to {RATIOS[1]} (cosine: "
    f"beyond {LARGE_COSINE}); weights: how many stand out by themselves"
)
NULL_COLUMNS = ["measure", "real", "random", "+-", "ratio", "z", "", "weights"]
LINK_COLUMNS = {
    "angle_mean": "angle",
    "floor_angle_mean": "half ulp",
    "nss": "nss",
    "intruders": "intr.",
    "update_norm": "norm",
    "update_stable_rank": "stable",
    "unchanged": "same",
    "principal_energy": "energy",
}
LINK_ANGLES = (
    "angle: mean principal angle of the leading k directions (degrees); half ulp: that of half an ulp of bf16 noise; "
    "intr.: intruder dimensions; stable: stable rank; same: share of entries unchanged; energy: that in the leading "
    "frame, 1 for a random update"
)
AUDIT_COLUMNS = {
    "relative_norm": "norm",
    "stable_rank": "stable",
    "effective_rank": "eff.",
    "leading_energy": "lead",
    "trailing_energy": "trail",
    "angle_mean": "angle",
    "angle_mean_null_mean": "random",
    "intruders": "intr.",
}
AUDIT_LEGEND = (
    "means over the weights; norm: ||D|| / ||W||; stable, eff.: stable and effective rank of D; lead, trail: energy in "
    "the base's first and last k directions, 1 for a random update; angle: mean principal angle of the leading k "
    "directions (degrees); random: that of random updates of the same singular values; intr.: intruder dimensions"
)
IDENTITY = "identity"


def print_decomposition(decomposition: Decomposition, console: Console | None = None) -> None:
    """Prints the matrices by shape with the largest errors, and the skipped tensors."""
    console = console or Console()
    by_shape: dict[tuple[Any, ...], list[FactorRecord]] = {}
    for record in decomposition.weights.values():
        by_shape.setdefault((*record.matrix_shape, record.rank, record.method), []).append(record)
    rows = [
        [
            f"{m} x {n}",
            str(len(records)),
            str(rank),
            method,
            show_number(max(r.relative_reconstruction_error for r in records), 2),
            show_number(max(r.orthogonality_error for r in records), 2),
        ]
        for (m, n, rank, method), records in by_shape.items()
    ]
    columns = ["matrix", "weights", "rank", "method", "reconstruction error", "orthogonality error"]
    print_table(f"{decomposition.source['reference']} in {decomposition.folder}", columns, rows, console=console)
    for note in decomposition.notes:
        console.print(f"note: {printable(note)}", markup=False)
    for reason, names in _by_reason(decomposition.skipped).items():
        console.print(f"skipped, {reason}: {len(names)} tensors", markup=False)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints group means, measures that stand out against random updates of equal norm, notes, omitted weights."""
    console = console or Console()
    if comparison.is_chain_of_three:
        _print_chain(comparison, console)
    else:
        _print_links(comparison, console)
    for sentence in comparison.summary:
        console.print(printable(sentence), markup=False)
    for note in comparison.notes:
        console.print(f"note: {printable(note)}", markup=False)
    for reason, names in _by_reason(comparison.unmatched).items():
        console.print(f"not compared, {reason}: {printable(', '.join(names))}", markup=False)


def print_audit(audit: Audit, console: Console | None = None) -> None:
    """Prints a row of means per module, the summary, and the notes."""
    console = console or Console()
    groups = [*audit.layers.groupby("module", sort=False), ("all", audit.layers)]
    print_table(
        f"{audit.metrics['adapter']['reference']} on {audit.metrics['base']['reference']}",
        ["module", "n", *AUDIT_COLUMNS.values()],
        [
            [str(module), str(len(rows)), *(_shown_mean(rows[column]) for column in AUDIT_COLUMNS)]
            for module, rows in groups
        ],
        console=console,
    )
    console.print(AUDIT_LEGEND + "\n", markup=False, highlight=False)
    console.print(printable(audit.summary), markup=False, highlight=False)
    for note in audit.notes:
        console.print(f"note: {printable(note)}", markup=False)


def print_extraction(extracted: Extracted, console: Console | None = None) -> None:
    """Prints a row per adapted weight, the largest tensors that are left out, and the summary."""
    console = console or Console()
    print_table(
        f"the update as an adapter: {extracted.folder}",
        ["weight", "m", "n", "rank", "||D||", "energy kept"],
        [
            [
                *(str(row[c]) for c in ("weight", "m", "n", "rank")),
                show_number(row["update_norm"], 3),
                f"{row['energy_kept']:.2%}",
            ]
            for row in extracted.layers.head(MOST_WEIGHTS).to_dict("records")
        ],
        console=console,
    )
    for row in extracted.left_out.head(3).itertuples():
        told = f"left out: {row.weight}, {row.share:.2%} of the update's energy ({row.reason})"
        console.print(printable(told), markup=False, highlight=False)
    console.print(printable(extracted.summary), markup=False, highlight=False)


def print_application(applied: Applied, console: Console | None = None) -> None:
    """Prints the size of the part, and the notes."""
    console = console or Console()
    sizes = total_sizes(applied.layers)
    told = f"{applied.folder}: {len(applied.layers)} matrices; ||part|| / ||update|| is {sizes['relative_norm']:.4g}"
    console.print(printable(told), markup=False, highlight=False)
    for note in applied.notes:
        console.print(f"note: {printable(note)}", markup=False)


def print_judgement(judgement: Judgement, console: Console | None = None) -> None:
    """Prints a row per checkpoint."""
    rows: list[dict[str, Any]] = [dict(row) for _, row in judgement.table.iterrows()]
    numbers = ("relative_norm", "distance", "score", "gain", "gain_se")
    shown = ["base +", "norm", "distance", "score", "gain", "+-"]
    print_table(
        "updates judged as models: base + scale * part",
        shown,
        [
            [
                str(row["variant"]),
                *(show_number(row[c], 3) for c in numbers),
            ]
            for row in rows
        ],
        console=console or Console(),
    )


def _shown_mean(values: pd.Series) -> str:
    return show_number(None if values.isna().all() else float(values.mean()), 3)


def _print_links(comparison: Comparison, console: Console) -> None:
    """Prints a table of groups per link, and the means of all its weights against random updates."""
    null = comparison.metrics["null"]
    for link in comparison.metrics["links"]:
        title = f"{link['from']} -> {link['to']}"
        groups = link["groups"] | {"all": link["all"]}
        print_table(
            f"{title}: how far did the weights move?",
            ["group", "n", *LINK_COLUMNS.values()],
            [
                [label, str(found["num_weights"]), *(show_number(_mean(found, c), 3) for c in LINK_COLUMNS)]
                for label, found in groups.items()
            ],
            console=console,
        )
        if null["draws"]:
            outstanding = [e for e in null["standing_out"] if (e["from"], e["to"]) == (link["from"], link["to"])]
            by_measure = Counter(entry["measure"] for entry in outstanding)
            measures = [c for c in LINK_MEASURES if not c.endswith(("_U", "_Vh"))]
            print_table(
                f"{title}: a{_title(null)}",
                NULL_COLUMNS,
                [_null_row(column, link["all"][column], by_measure[column]) for column in measures],
                console=console,
            )
    console.print(LINK_ANGLES, markup=False, highlight=False)
    if null["draws"]:
        console.print(NULL_MODEL + "\n", markup=False, highlight=False)


def _print_chain(comparison: Comparison, console: Console) -> None:
    groups = comparison.metrics["groups"] | {"all": comparison.metrics["all"]}
    print_table(
        "How far did the weights move?",
        ["group", "01", "12", "02", "half ulp", "gap", "norm", "same", "energy", "cos"],
        [_update_row(label, summary) for label, summary in groups.items()],
        console=console,
    )
    console.print(ANGLES + "\n", markup=False, highlight=False)
    print_table(
        "Do the rotations of base, stage 1, stage 2 compose?",
        ["group", "n", "U", "Vh", "/ random", "basis", "half ulp"],
        [_composition_row(label, summary) for label, summary in groups.items()],
        console=console,
    )
    console.print(COMPOSITION + "\n", markup=False, highlight=False)
    if comparison.metrics["null"]["draws"]:
        _print_null_model(comparison, console)


def _print_null_model(comparison: Comparison, console: Console) -> None:
    """Prints means over all weights against random updates, and the single weights that stand out, farthest first."""
    null, summary = comparison.metrics["null"], comparison.metrics["all"]
    by_measure = Counter(entry["measure"] for entry in null["standing_out"])
    measures = [c for c in MEASURES if c.startswith("rotation_mse") or not c.endswith(("_U", "_Vh"))]
    print_table(
        f"A{_title(null)}",
        NULL_COLUMNS,
        [_null_row(column, summary[column], by_measure[column]) for column in measures],
        console=console,
    )
    console.print(NULL_MODEL + "\n", markup=False, highlight=False)
    weights = _weights_standing_out(null["standing_out"])
    print_table(
        "Weights that stand out: real / random of 0-2 (stable: the stable rank), and the cosine",
        ["weight", *dict.fromkeys(PER_WEIGHT.values())],
        weights[:MOST_WEIGHTS],
        console=console,
    )
    if len(weights) > MOST_WEIGHTS:
        console.print(f"and {len(weights) - MOST_WEIGHTS} more, in metrics.json under null.standing_out", markup=False)


def _mean(summary: Mapping[str, Any], column: str) -> float | None:
    value: float | None = summary[column]["mean"]
    return value


def _composition_row(label: str, summary: Mapping[str, Any]) -> list[str]:
    def either_side(column: str, part: str = "mean") -> float | None:
        known = [value for side in ("U", "Vh") if (value := summary[f"{column}_{side}"].get(part)) is not None]
        return sum(known) / len(known) if known else None

    sides = [
        IDENTITY
        if summary[f"num_identity_{side}"] == summary["num_weights"]
        else show_number(_mean(summary, f"rotation_mse_{side}"))
        for side in ("U", "Vh")
    ]
    ratio = show_number(either_side("rotation_mse", "ratio"))
    controls = [show_number(either_side(column), 2) for column in ("random_mse", "floor_rotation_mse")]
    return [label, str(summary["num_weights"]), *sides, ratio, *controls]


def _update_row(label: str, summary: Mapping[str, Any]) -> list[str]:
    angles = [f"angle_mean_{pair}" for pair in PAIRS] + ["floor_angle_mean"]
    rest = ["update_norm_02", "unchanged_02", "principal_energy_02", "cosine_01_12"]
    shown = [[show_number(_mean(summary, column), 2) for column in columns] for columns in (angles, rest)]
    return [label, *shown[0], show_number(_mean(summary, "gap_k"), 4), *shown[1]]


def _title(null: Mapping[str, Any]) -> str:
    more = f"; {' and '.join(null['further_models'])} beside them in the tables" if "further_models" in null else ""
    return f"gainst {null['draws']} random updates of equal norm{more}"


def _null_row(column: str, found: Mapping[str, Any], num_weights: int) -> list[str]:
    null = Null(found["null_mean"] or 0.0, found["null_std"])
    mark = "*" if found["null_count"] and stands_out(column, found["mean"], null) else ""
    numbers = [show_number(found[part]) for part in ("mean", "null_mean")]
    numbers += [show_number(found["null_std"], 2), show_number(found["ratio"]), show_number(found["z"])]
    return [column, *numbers, mark, f"{num_weights}/{found['null_count']}"]


def _weights_standing_out(entries: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """A row per weight and a cell per outstanding measure, sorted by the largest ratio to the random mean."""
    rows: dict[str, dict[str, str]] = {}
    factor: dict[str, float] = {}
    for entry in entries:
        label = PER_WEIGHT.get(entry["measure"])
        if label is None:
            continue
        name, ratio = entry["weight"], entry["ratio"]
        rows.setdefault(name, {})[label] = show_number(entry["value"] if ratio is None else ratio, 2)
        factor[name] = max(factor.get(name, 1.0), ratio or 1.0, 1 / (ratio or 1.0))
    farthest = sorted(rows, key=lambda name: -factor[name])
    return [
        [name.removesuffix(".weight"), *(rows[name].get(label, "") for label in dict.fromkeys(PER_WEIGHT.values()))]
        for name in farthest
    ]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names
