"""What `nullspace build` tells the person at the terminal, and the tracker."""

from typing import TYPE_CHECKING

from rich.console import Console

from subspacelab.errors import printable
from subspacelab.models.causal_lm import Reach
from subspacelab.models.lora_folder import META
from subspacelab.nullspace.build import Built
from subspacelab.nullspace.layer_report import MEASURES, LayerReport
from subspacelab.reports.tables import print_table, show_number

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker

COLUMNS = ["layer", "ratio", "optimum", "held out", "optimum", "random", "gap", "angle"]


def print_built(built: Built, console: Console | None = None) -> None:
    """Prints a row per layer, what the start changed, and notes."""
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


def track_built(built: Built, tracker: "Tracker", *, seed: int | None = None) -> None:
    """Records each measure as a curve over the block per kind of layer, the means, and a table of the layers.

    `seed` stands before the names of a second adapter in one run; the first, without, makes the headline.
    """
    import pandas as pd

    prefix = "" if seed is None else f"seed-{seed}/"
    for layer in built.layers:
        row = layer.as_json()
        points = {f"{prefix}{name}/{layer.kind}": row[name] for name in MEASURES if row.get(name) is not None}
        if points:
            tracker.log_metrics(points, layer.index)
    method = built.meta["method"]
    means = built.meta["summary"] | {"start_difference": built.meta["start_difference"]}
    tracker.log_metrics({f"{prefix}mean/{name}": value for name, value in means.items()})
    if seed is None and "BX_ratio_held_out" in means:
        tracker.log_headline({f"{method}_BX_ratio_held_out": means["BX_ratio_held_out"]})
    tracker.log_table(pd.DataFrame([layer.as_json() for layer in built.layers]), f"{prefix}layers".replace("/", "_"))
    tracker.log_artifact(built.folder / META, f"{prefix}adapter")


def _row(layer: LayerReport) -> list[str]:
    of_input = layer.of_input
    assert of_input is not None
    numbers = (layer.BX_ratio, of_input.optimum, layer.BX_ratio_held_out, of_input.optimum_held_out, of_input.random)
    gap = show_number(of_input.gap)
    # From the number of the block on: what stands before it is the same in every row.
    name = layer.module[max(0, layer.module.find(f".{layer.index}.")) :].lstrip(".")
    return [name, *(show_number(value, 2) for value in numbers), gap, f"{of_input.halves_angle_mean:.0f}"]
