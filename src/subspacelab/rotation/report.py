"""What decompose and compare tell the person at the terminal, and the tracker."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from subspacelab.errors import printable
from subspacelab.reports.tables import print_table, show_number
from subspacelab.rotation.compare import Comparison
from subspacelab.rotation.factors import Decomposition, FactorRecord
from subspacelab.rotation.layer import PAIRS

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker

HEADLINE = (
    *("rotation_mse_U", "rotation_mse_Vh", "random_mse_U", "random_mse_Vh"),
    *("angle_mean_01", "angle_mean_12", "angle_mean_02", "floor_angle_mean"),
    *("update_norm_01", "update_norm_12", "update_norm_02", "cosine_01_12"),
)
IDENTITY = "identity"


def print_decomposition(decomposition: Decomposition, console: Console | None = None) -> None:
    """Prints the matrices by shape with the largest errors, and what was skipped."""
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
    for reason, names in _by_reason(decomposition.skipped).items():
        console.print(f"skipped, {reason}: {len(names)} tensors", markup=False)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints two tables of group means, identity sides marked, then notes and what was not compared."""
    console = console or Console()
    groups = comparison.metrics["groups"] | {"all": comparison.metrics["all"]}
    print_table(
        "Do the rotations of base, stage 1, stage 2 compose? MSE of R1 R2 - R3",
        ["group", "n", "U", "Vh", "random", "floor"],
        [_composition_row(label, summary) for label, summary in groups.items()],
        console=console,
    )
    print_table(
        "How far did the weights move? Mean angles (degrees) 0-1, 1-2, 0-2; the rest 0-2",
        ["group", "01", "12", "02", "floor", "norm", "same", "energy", "cos"],
        [_update_row(label, summary) for label, summary in groups.items()],
        console=console,
    )
    for note in comparison.notes:
        console.print(f"note: {printable(note)}", markup=False)
    for reason, names in _by_reason(comparison.unmatched).items():
        console.print(f"not compared, {reason}: {printable(', '.join(names))}", markup=False)


def track_comparison(comparison: Comparison, tracker: "Tracker") -> None:
    """Records the means over all weights (a few of them as the headline), the tables and the pictures."""
    measures = {name: value for name, value in comparison.metrics["all"].items() if isinstance(value, dict)}
    means = {name: value["mean"] for name, value in measures.items() if value["mean"] is not None}
    tracker.log_metrics({f"mean/{name}": mean for name, mean in means.items()})
    tracker.log_metrics({f"std/{name}": measures[name]["std"] for name in means})
    tracker.log_headline({name: means[name] for name in HEADLINE if name in means})
    tracker.log_table(comparison.layers, "layers")
    tracker.log_table(comparison.modules, "modules")
    for picture in comparison.pictures:
        tracker.log_artifact(picture, "pictures")
    for file in ("layers.csv", "modules.csv", "curves.csv", "metrics.json"):
        tracker.log_artifact(comparison.output_dir / file, "tables")


def _mean(summary: Mapping[str, Any], column: str) -> float | None:
    value: float | None = summary[column]["mean"]
    return value


def _composition_row(label: str, summary: Mapping[str, Any]) -> list[str]:
    def either_side(column: str) -> float | None:
        known = [value for side in ("U", "Vh") if (value := _mean(summary, f"{column}_{side}")) is not None]
        return sum(known) / len(known) if known else None

    sides = [
        IDENTITY
        if summary[f"num_identity_{side}"] == summary["num_weights"]
        else show_number(_mean(summary, f"rotation_mse_{side}"))
        for side in ("U", "Vh")
    ]
    controls = [show_number(either_side(column), 2) for column in ("random_mse", "floor_rotation_mse")]
    return [label, str(summary["num_weights"]), *sides, *controls]


def _update_row(label: str, summary: Mapping[str, Any]) -> list[str]:
    columns = [f"angle_mean_{pair}" for pair in PAIRS]
    columns += ["floor_angle_mean", "update_norm_02", "unchanged_02", "principal_energy_02", "cosine_01_12"]
    return [label, *(show_number(_mean(summary, column), 2) for column in columns)]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names
