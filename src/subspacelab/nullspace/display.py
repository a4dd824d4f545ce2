"""Terminal output of the commands of nullspace."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from subspacelab.core.errors import printable
from subspacelab.models.adaptable import Reach
from subspacelab.nullspace.comparison import FAIL, NOT_APPLICABLE, PASS, SUMMARY, failures
from subspacelab.nullspace.knowledge import BASE
from subspacelab.nullspace.rates import EQUAL_TASK
from subspacelab.nullspace.results import THRESHOLDS, LayerStats, Verification
from subspacelab.nullspace.starts import LayerReport
from subspacelab.plotting.terminal import print_table, show_number

if TYPE_CHECKING:
    from subspacelab.nullspace.building import Built
    from subspacelab.nullspace.training import TrainedAdapter

COLUMNS = ["layer", "ratio", "optimum", "held out", "optimum", "random", "gap", "angle"]


def print_built(built: "Built", console: Console | None = None) -> None:
    """Prints a row per layer, the effect of the start on the logits, and notes."""
    console = console or Console()
    meta = built.meta
    title = f"{meta['method']} of rank {meta['rank']} on {meta['base']['reference']}, in {built.folder}"
    if meta["calibration"] is None:
        console.print(f"{title}: {len(built.layers)} layers, not calibrated", markup=False)
    else:
        print_table(title, COLUMNS, [_row(layer) for layer in built.layers], console=console)
        tokens = built.layers[0].of_input
        assert tokens is not None
        console.print(
            f"ratio: ||BX||/||X|| on {tokens.num_tokens} calibration tokens and on {tokens.num_held_out} held out, each"
            " with the least that any B of this rank has; gap: of the eigenvalues at the rank; angle: mean angle in"
            " degrees between the null spaces of two halves of the calibration",
            markup=False,
        )
    for layer in built.layers:
        of_input = layer.of_input
        if of_input is not None and of_input.num_clamped and layer.module == layer.input:
            console.print(
                f"note: {layer.module}: {of_input.num_clamped} of {layer.in_features} directions of its input hold"
                " rounding only",
                markup=False,
            )
    console.print(
        f"start: logits differ from the base's by {meta['start_difference']:.2g} at most"
        f" ({meta['start_difference_relative']:.2g} of the largest)",
        markup=False,
    )
    console.print(Reach(**meta["reach"]).said(), markup=False)
    for note in built.notes:
        console.print(f"note: {printable(note)}", markup=False)


def _row(layer: LayerReport) -> list[str]:
    of_input = layer.of_input
    assert of_input is not None
    numbers = (layer.BX_ratio, of_input.optimum, layer.BX_ratio_held_out, of_input.optimum_held_out, of_input.random)
    gap = show_number(of_input.gap)
    # From the number of the block on: what stands before it is the same in every row.
    name = layer.module[max(0, layer.module.find(f".{layer.index}.")) :].lstrip(".")
    return [name, *(show_number(value, 2) for value in numbers), gap, f"{of_input.halves_angle_mean:.0f}"]


MARKS = {"good": "✓", "fair": "~", "bad": "✗"}
CURVES = (
    *("BX_ratio", "ABX_ratio", "adapter_contribution", "DeltaX_ratio", "BX_ratio_random", "BX_ratio_optimum"),
    *("BX_ratio_bos", "BX_ratio_rest", "BX_ratio_median", "A_weight_norm", "B_weight_norm"),
)
SHOWN = {
    **{"recall": "recall", "recall_begun": "begun", "recall_uncalibrated": "uncal."},
    **{"recall_begun_uncalibrated": "begun", "task": "task", "drift": "drift"},
}
"""Measures of knowledge in the terminal table, with their headings."""


def print_training(result: "TrainedAdapter", console: Console | None = None) -> None:
    """Prints the number of trained parameters and of rows, and the folder of the result."""
    console = console or Console()
    trained = result.meta["trained"]
    trains, all_of_them = trained["trainable_parameters"], trained["all_parameters"]
    frozen = "A only, B frozen" if result.meta["down_frozen"] else "A and B"
    console.print(
        f"{result.meta['method']}: {trains:,} of {all_of_them:,} parameters trained"
        f" ({100 * trains / all_of_them:.3g} %; {frozen})",
        markup=False,
    )
    skipped = f", {trained['num_skipped']} rows left out (prompt fills max_length)" if trained["num_skipped"] else ""
    console.print(
        f"{trained['steps']} steps on {trained['num_rows']} rows{skipped}; loss at the end {trained['final_loss']:.4g}",
        markup=False,
    )
    console.print(f"adapter: {result.folder}", markup=False)


def print_verification(found: Verification, console: Console | None = None) -> None:
    """Prints a block per layer, the averages, and their verdicts."""
    console = console or Console()
    for stats in found.stats:
        console.print(layer_block(stats), markup=False, highlight=False)
    console.print(summary_block(found), markup=False, highlight=False)
    console.print(reading_block(found), markup=False, highlight=False)


def layer_block(s: LayerStats) -> str:
    """Lines for one layer."""
    basis = "" if s.B_orthonormal else " (by an orthonormal basis of B's rows, which are not orthonormal)"
    lines = [
        s.layer,
        f"  samples {s.samples}, input {s.in_features}, rank {s.rank}, output {s.out_features}",
        "  activations (mean norm over tokens)",
        *_named(s, {"X_norm": "‖x‖", "BX_norm": "‖Bx‖", "ABX_norm": "‖ABx‖", "ResidualX_norm": "‖W_res x‖"}),
        *_named(s, {"FullOutput_norm": "‖W_res x + ABx‖"}),
        f"  null space{basis}",
        f"    ‖BX‖/‖X‖    {show_number(s.BX_ratio)} {_mark('BX_ratio', s)}"
        f"  {show_number(s.times_better_than_random, 2)} times better than random ({show_number(s.BX_ratio_random)});"
        f" optimum {show_number(s.BX_ratio_optimum)}, {show_number(s.tokens_per_dimension, 2)} tokens per dimension",
        f"                first tokens {show_number(s.BX_ratio_bos)}, the others {show_number(s.BX_ratio_rest)};"
        f" of single tokens: mean norms"
        f" {show_number(s.BX_ratio_mean_norms)}, median {show_number(s.BX_ratio_median)}",
        f"    ‖ABx‖/‖x‖   {show_number(s.ABX_ratio)} {_mark('ABX_ratio', s)}"
        f"  ‖ΔW x‖/‖x‖ {show_number(s.DeltaX_ratio)}{_bound(s)}",
        f"  adapter's share of the output {100 * s.adapter_contribution:.3g} % {_mark('adapter_contribution', s)}",
        f"  weights ‖B‖ {show_number(s.B_weight_norm)}, ‖A‖ {show_number(s.A_weight_norm)},"
        f" ‖W_res‖ {show_number(s.Residual_weight_norm)}",
        "",
    ]
    return "\n".join(lines)


def summary_block(found: Verification) -> str:
    """Lines for the averages over the layers."""
    s = found.summary
    state = "trained" if s.trained else "as it was built"
    return "\n".join(
        [
            f"Summary: {s.method}, {state}, {found.num_layers} layers, {s.num_tokens} tokens of {found.calib_dataset}",
            f"  ‖BX‖/‖X‖                     {show_number(s.BX_ratio)}"
            f"  (random {show_number(s.BX_ratio_random)}, optimum {show_number(s.BX_ratio_optimum)};"
            f" first tokens {show_number(s.BX_ratio_bos)}, the others {show_number(s.BX_ratio_rest)})",
            f"  ‖ABx‖/‖x‖                    {show_number(s.ABX_ratio)}",
            f"  adapter's share of the output {100 * s.adapter_contribution:.3g} %",
            *([f"  note: {s.sample.note}"] if s.sample.note else []),
            "",
        ]
    )


def reading_block(found: Verification) -> str:
    """One line per verdict."""
    return "\n".join(["Reading", *(f"  {MARKS[v.grade]} {v.metric}: {v.text}" for v in found.verdicts)])


def kind_and_block(layer: str) -> tuple[str, int]:
    """Last part of a module's name and the first number in it: `q_proj` and 3 for `model.layers.3.self_attn.q_proj`."""
    parts = layer.split(".")
    return parts[-1], next((int(part) for part in parts if part.isdigit()), 0)


def print_comparison(table: pd.DataFrame, console: Console | None = None) -> None:
    """Prints the summary's rows, the layers with failed expectations, and how many expectations hold."""
    console = console or Console()
    for method, rows in table.groupby("method", sort=False):
        shown = [_change(row) for row in rows[rows["layer"] == SUMMARY].to_dict("records")]
        print_table(str(method), ["over all layers", "before", "after", "expected", "verdict"], shown, console=console)
    for row in failures(table).to_dict("records"):
        if row["layer"] != SUMMARY:
            metric, before, after, expected, _ = _change(row)
            where = f"{row['method']}, {row['layer']}"
            console.print(f"failed: {where}: {metric} {before} -> {after}, expected {expected}", markup=False)
    counts = table["verdict"].value_counts()
    console.print(", ".join(f"{counts.get(v, 0)} {v}" for v in (PASS, FAIL, NOT_APPLICABLE)), markup=False)


def print_knowledge(table: pd.DataFrame, equal_task: pd.DataFrame, console: Console | None = None) -> None:
    """Prints mean and deviation over the seeds at each rate, the base first, then the recalls at equal task."""
    rows = []
    for row in table.to_dict("records"):
        rate = "" if row["method"] == BASE else f" {row['rate']:g}{'*' if row['chosen'] else ''}"
        values = [_spread(row[f"{m}_mean"], row[f"{m}_std"], row["num_seeds"]) for m in SHOWN]
        rows.append([f"{row['method']}{rate}", *values])
    title = "Did knowledge survive? uncal.: facts that the calibration text does not ask; *: chosen on validation"
    print_table(title, ["method, rate", *SHOWN.values()], rows, console=console)
    if not equal_task.empty:
        rows = []
        for method, found in equal_task[equal_task["measure"].isin(SHOWN)].groupby("method", sort=False):
            values = [_spread(row["mean"], row["std"], row["num_seeds"]) for row in found.to_dict("records")]
            rows.append([str(method), *values])
        names = [name for measure, name in SHOWN.items() if measure in set(equal_task["measure"])]
        print_table(
            f"Where the task is at {EQUAL_TASK:g}, between two rates", ["method", *names], rows, console=console
        )


def _spread(mean: float, std: float, num_seeds: int) -> str:
    return "-" if math.isnan(mean) else f"{mean:.2f}" + (f"±{std:.2f}" if num_seeds > 1 else "")


def _change(row: Mapping[Any, Any]) -> list[str]:
    return [row["metric"], show_number(row["before"]), show_number(row["after"]), row["expected"], row["verdict"]]


def _named(s: LayerStats, names: dict[str, str]) -> list[str]:
    return [f"    {sign:<18} {show_number(getattr(s, name), 4)}" for name, sign in names.items()]


def _mark(metric: str, s: LayerStats) -> str:
    return MARKS[THRESHOLDS[metric].grade(getattr(s, metric))]


def _bound(s: LayerStats) -> str:
    if s.bound is None or s.base_bound is None:
        return "; B trains: no bound"
    live = f"{show_number(s.bound_left)} <= {show_number(s.bound)}"
    return f"; bound {live}, on the base's inputs {show_number(s.base_bound_left)} <= {show_number(s.base_bound)}"
