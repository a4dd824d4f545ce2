"""What the page says of lowrank: methods against the SVD, by picture, by rank and by cost; channel maps."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.lowrank.baselines import CONTROLS, SVD
from subspacelab.report.figures import Line, frames_of, lines, whole_numbers
from subspacelab.report.page import Choice, Figure, Headline, Section, Table
from subspacelab.report.results import Means, Results

FOLDER = "reports/lowrank"
QUESTION = "How near do small networks come to the best approximation of vision features at one rank, and at what cost?"
STAGES = ("cache_features", "train_lowrank", "continue_lowrank", "compare_lowrank", "visualize_lowrank")
MEASURES = {
    "cosine": "cosine",
    "token_cosine": "mean cosine of the tokens",
    "relative_error": "relative error",
    "mse": "mean squared error",
    "explained_variance": "explained variance",
    "share_of_svd": "cosine over that of the SVD",
    "residual_over_svd": "residual over that of the SVD",
}


class Details(BaseModel):
    """What is read of details.json."""

    best_network: str = "the best network"
    rank: int | None = None
    full_rank: int | None = None
    num_images: int | None = None
    methods: dict[str, Means] = {}
    flops_per_picture: dict[str, float] = {}


class Epoch(BaseModel):
    """What is read of an epoch of history.json."""

    epoch: int
    val_cosine: float | None = None


def section(results: Results) -> Section:
    """The section of lowrank, of the files that are there; channel maps are added by `report.maps`."""
    metrics = results.json(f"{FOLDER}/metrics.json", dict[str, float]) or {}
    details = results.json(f"{FOLDER}/details.json", Details) or Details()
    images = results.table(f"{FOLDER}/comparison.csv", text=("method", "dataset_id"), numbers=("cosine",))
    curve = results.json(f"{FOLDER}/pictures/rank_curve.json", dict[str, dict[str, float]])
    blocks: list[Figure | Table] = []
    if curve:
        blocks.append(_rank_curve(curve))
    if details.methods and details.flops_per_picture:
        blocks.append(_cost(details))
    if images is not None and len(images):
        blocks.append(_by_picture(images))
    if histories := _histories(results):
        blocks.append(histories)
    if details.methods:
        blocks.append(_methods(details))
    if images is not None:
        blocks.append(Table("Every test picture", images, note="cosine_change: since the start of the training.", folded=True))
    return Section("lowrank", QUESTION, _sentences(metrics, details), _headlines(metrics), blocks)


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    found = []
    for name, label in {"SVD": "cosine, SVD", "Sketch": "cosine, Sketch", "network": "cosine, best network on single tokens"}.items():
        if f"cosine_{name}" in metrics:
            before = metrics.get(f"cosine_{name}_untrained")
            beside = "the optimum" if name == "SVD" else "" if before is None else f"before training: {before:.4f}"
            found.append(Headline(label, f"{metrics[f'cosine_{name}']:.4f}", beside))
    return found


def _sentences(metrics: dict[str, float], details: Details) -> list[str]:
    rank = f" at rank {details.rank} of {details.full_rank}" if details.rank and details.full_rank else ""
    best, found = details.best_network, []
    if "cosine_SVD" in metrics and "cosine_network" in metrics:
        found.append(f"The best approximation{rank} has a mean cosine of {metrics['cosine_SVD']:.4f} on the test pictures; "
                     f"{best}, the best network that sees one token at a time, has {metrics['cosine_network']:.4f}.")  # fmt: skip
    for name, who in {"Sketch": "the Sketch", "network": best}.items():
        if {f"cosine_{name}", f"cosine_{name}_untrained"} <= metrics.keys():
            change = metrics[f"cosine_{name}"] - metrics[f"cosine_{name}_untrained"]
            by = "less than 0.0001" if abs(change) < 1e-4 else f"{change:+.4f}"
            found.append(f"Training changes the cosine of {who} by {by}.")
    return found


def _line(method: str, x: Sequence[Any], y: Sequence[float | None], **more: Any) -> Line:
    """A method's line: controls pale and dashed."""
    control = method in CONTROLS
    return Line(method, x, y, method, int(control), dash="dash" if control else "solid", **more)


def _rank_curve(curve: dict[str, dict[str, float]]) -> Figure:
    drawn = []
    for name in _in_order(list(curve)):
        points = sorted((int(rank), value) for rank, value in curve[name].items())
        drawn.append(_line(name, [r for r, _ in points], [v for _, v in points]))
    ranks = sorted({rank for line in drawn for rank in line.x})
    figure = lines(drawn, "rank", "mean cosine of the test pictures", xaxis={"type": "log", "tickvals": ranks})
    return Figure("lowrank-ranks", "Cosine over the rank", "Networks are points at the rank they were trained for. No method can lie above the SVD.", figure)


def _cost(details: Details) -> Figure:
    """Operations against the residual: the Pareto curve of the methods."""
    methods, flops = details.methods, details.flops_per_picture
    drawn = []
    for name in _in_order([name for name in methods if name in flops]):
        error = methods[name].get("relative_error", {})
        if error.get("mean") is not None:
            drawn.append(_line(name, [flops[name]], [error["mean"]], mode="markers", error=[error.get("std") or 0]))
    figure = lines(drawn, "operations per picture", "relative error, mean ± deviation over the pictures", xaxis_type="log")
    return Figure("lowrank-cost", "Error against cost", "Lower left is better. Operations of matrix products, QR and eigenvectors; a multiply-add is two.", figure)


def _by_picture(images: pd.DataFrame) -> Figure:
    """Each measure by picture, in the order of the SVD's cosine."""
    names = _in_order(list(images["method"].unique()))
    reference = SVD if SVD in names else names[0]
    order = images[images["method"] == reference].sort_values("cosine")["dataset_id"].tolist()
    tables = {name: images[images["method"] == name].drop_duplicates("dataset_id").set_index("dataset_id").reindex(order) for name in names}
    views = {
        words: [
            _line(name, list(range(1, len(order) + 1)), table[measure].tolist(), text=order)
            for name, table in tables.items()
        ]
        for measure, words in MEASURES.items() if measure in images and pd.api.types.is_numeric_dtype(images[measure])
    }  # fmt: skip
    first = next(iter(views))
    return Figure(
        "lowrank-pictures",
        "Every test picture",
        f"Pictures in the order of the cosine of {reference}; hovering names the picture.",
        lines(views[first], "test picture", first),
        frames_of(views),
        [Choice("measure", "measure", list(views))],
        ["{measure}"],
        free=True,
    )


def _histories(results: Results) -> Figure | None:
    drawn = []
    for path in results.find("data/lowrank/results/*/history.json"):
        epochs = results.json(path, list[Epoch]) or []
        name, points = path.split("/")[-2], [(each.epoch, each.val_cosine) for each in epochs]
        drawn.append(Line(name, [x for x, _ in points], [y for _, y in points], name))
    figure = lines(drawn, "epoch", "cosine on the validation pictures", **whole_numbers([x for line in drawn for x in line.x]))
    return Figure("lowrank-training", "Trainings", "The cosine on validation pictures after each epoch.", figure) if drawn else None


def _methods(details: Details) -> Table:
    flops = details.flops_per_picture
    rows = [
        {"method": name, "control": name in CONTROLS}
        | {f"{key} {part}": value for key, spread in details.methods[name].items() for part, value in spread.items()}
        | {"operations per picture": flops.get(name)}
        for name in _in_order(list(details.methods))
    ]
    table = pd.DataFrame(rows)
    main = ["method", "control", *(f"{key} {part}" for key in ("cosine", "relative_error", "residual_over_svd") for part in ("mean", "std")), "operations per picture"]
    return Table("Methods", table, main, f"Means over {details.num_images or 'the'} test pictures.")


def _in_order(names: list[str]) -> list[str]:
    """The SVD, networks, controls."""
    return sorted(names, key=lambda name: (name != SVD, name in CONTROLS, name))
