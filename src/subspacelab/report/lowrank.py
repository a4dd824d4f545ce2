"""The page's section on lowrank: methods against the SVD, by picture, rank, task, bytes and cost."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.lowrank.baselines import CONTROLS, SVD
from subspacelab.lowrank.storage import COMPUTED, X
from subspacelab.report.figures import Line, choosable, lines, whole_numbers
from subspacelab.report.page import Figure, Headline, Section, Table
from subspacelab.report.results import Results

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
MAIN = ("cosine", "relative_error", "residual_over_svd")
SMALL = 1e-4
ABOUT_RANKS = "Networks are points at the rank they were trained for. No method can lie above the SVD."
ABOUT_TASK = (
    "The language model reads the approximation in the place of its own tokens. Bars: standard error of the paired "
    "difference to the tokens themselves, X."
)
ABOUT_RATES = (
    "Each line is a method in one format over the rank, which hovering names. Upper left is better. X: the tokens "
    "themselves, not factorised. The B of the PCA basis is shared by all pictures and not counted."
)
ABOUT_COST = "Lower left is better. Operations of matrix products, QR and eigenvectors; a multiply-add is two."


class Details(BaseModel):
    """The keys of details.json that this section reads."""

    best_network: str = "the best network"
    rank: int | None = None
    full_rank: int | None = None
    num_images: int | None = None
    methods: dict[str, dict[str, dict[str, float | None]]] = {}
    flops_per_picture: dict[str, float] = {}
    training: dict[str, dict[str, float | None]] = {}
    task: dict[str, dict[str, float | None]] = {}


class Epoch(BaseModel):
    """The keys of an epoch in history.json that this section reads."""

    epoch: int
    val_cosine: float | None = None


def section(results: Results) -> Section:
    """The section on lowrank, from the files that exist; `report.maps` adds the channel maps."""
    metrics = results.metrics(FOLDER)
    details = results.json(f"{FOLDER}/details.json", Details) or Details()
    images = results.table(f"{FOLDER}/comparison.csv", text=("method", "dataset_id"), numbers=("cosine",))
    stored = results.table(
        f"{FOLDER}/rate_distortion.csv", text=("method", "format"), numbers=("rank", "bytes_per_picture", "cosine")
    )
    curve = results.json(f"{FOLDER}/pictures/rank_curve.json", dict[str, dict[int, float]])
    blocks: list[Figure | Table] = []
    if curve:
        blocks.append(_rank_curve(curve))
    if details.methods and details.flops_per_picture:
        blocks.append(_cost(details))
    if stored is not None and len(stored):
        blocks += _storage(stored)
    if images is not None and len(images):
        blocks += _by_picture(images)
    blocks += _histories(results)
    if details.methods:
        blocks.append(_methods(details))
    if images is not None:
        blocks.append(Table("Every test picture", images, (), "cosine_change: since the start of the training.", True))
    return Section("lowrank", QUESTION, _sentences(metrics, details), _headlines(metrics, details), blocks)


def _headlines(metrics: dict[str, float], details: Details) -> list[Headline]:
    known = {"SVD": "cosine, SVD", "Sketch": "cosine, Sketch", "network": "cosine, best network on single tokens"}
    found = []
    for name, words in known.items():
        if f"cosine_{name}" in metrics:
            value = metrics[f"cosine_{name}"]
            change = _number(details.training, details.best_network if name == "network" else name, "cosine_change")
            beside = "the optimum" if name == "SVD" else ""
            beside = beside if change is None else f"before training: {value - change:.4f}"
            found.append(Headline(words, f"{value:.4f}", beside, f"cosine_{name}"))
    for name in ("SVD", details.best_network):
        change, error = (_number(details.task, name, key) for key in ("task_change", "task_change_se"))
        if change is not None and error is not None:
            found.append(
                Headline(f"change of IoU, {name}", f"{change:+.3f}", f"± {error:.3f}, to the tokens themselves")
            )
    return found


def _number(found: dict[str, dict[str, float | None]], method: str, key: str) -> float | None:
    return found.get(method, {}).get(key)


def _sentences(metrics: dict[str, float], details: Details) -> list[str]:
    rank = f" at rank {details.rank} of {details.full_rank}" if details.rank and details.full_rank else ""
    best, found = details.best_network, []
    if "cosine_SVD" in metrics:
        found.append(f"The best approximation{rank} has a mean cosine of {metrics['cosine_SVD']:.4f} (the SVD).")
    if "cosine_network" in metrics:
        which = f"{best}, the best of the networks that see one token at a time,"
        found.append(f"{which} has {metrics['cosine_network']:.4f}.")
    for name, who in {"Sketch": "the Sketch", best: best}.items():
        if (change := _number(details.training, name, "cosine_change")) is not None:
            by = "less than 0.0001" if abs(change) < SMALL else f"{change:+.4f}"
            found.append(f"Training changes the cosine of {who} by {by}.")
    if (whole := _number(details.task, X, "task_iou")) is not None:
        changes = {name: _number(details.task, name, "task_change") for name in (SVD, best)}
        by = " and ".join(f"{change:+.3f} by {name}" for name, change in changes.items() if change is not None)
        found.append(f"From the tokens themselves the language model finds boxes of IoU {whole:.3f}; it changes {by}.")
    return found


def _line(method: str, x: Sequence[Any], y: Sequence[float | None], **more: Any) -> Line:
    """A method's line; controls are pale and dashed."""
    control = method in CONTROLS
    return Line(method, x, y, method, int(control), dash="dash" if control else "solid", **more)


def _in_order(names: Sequence[str]) -> list[str]:
    """The SVD, then networks, then controls."""
    return sorted(names, key=lambda name: (name != SVD, name in CONTROLS, name))


def _rank_curve(curve: dict[str, dict[int, float]]) -> Figure:
    drawn = [
        _line(name, sorted(curve[name]), [curve[name][r] for r in sorted(curve[name])]) for name in _in_order([*curve])
    ]
    ranks = sorted({rank for line in drawn for rank in line.x})
    axis = {"type": "log", "tickvals": ranks}
    figure = lines(drawn, "rank", "mean cosine of the test pictures", xaxis=axis)
    return Figure("lowrank-ranks", "Cosine over the rank", ABOUT_RANKS, figure)


def _cost(details: Details) -> Figure:
    """Operations against error: the lower left border of the points is the Pareto front."""
    drawn = []
    for name in _in_order([name for name in details.methods if name in details.flops_per_picture]):
        error = details.methods[name].get("relative_error", {})
        if error.get("mean") is not None:
            spread = [error.get("std") or 0.0]
            drawn.append(_line(name, [details.flops_per_picture[name]], [error["mean"]], mode="markers", error=spread))
    y = "relative error, mean ± deviation over the pictures"
    return Figure(
        "lowrank-cost", "Error against cost", ABOUT_COST, lines(drawn, "operations per picture", y, xaxis_type="log")
    )


def _storage(stored: pd.DataFrame) -> list[Figure | Table]:
    """IoU over the rank, bytes against cosine and IoU, and what to store for a budget."""
    judged = (
        "task_iou" in stored and pd.api.types.is_numeric_dtype(stored["task_iou"]) and stored["task_iou"].notna().any()
    )
    views = {"cosine": "cosine"} | ({"IoU": "task_iou"} if judged else {})
    groups = {key: rows.sort_values("rank") for key, rows in stored.groupby(["method", "format"], sort=False)}
    drawn = {
        words: [
            Line(
                f"{name}, {format}", rows["bytes_per_picture"].tolist(), rows[measure].tolist(), str(name),
                text=[f"rank {rank}" for rank in rows["rank"]],
            )
            for (name, format), rows in groups.items()
        ]
        for words, measure in views.items()
    }  # fmt: skip
    blocks: list[Figure | Table] = _task(stored) if judged else []
    blocks += choosable(
        "lowrank-rates", "Bytes per picture", ABOUT_RATES, drawn, "bytes per picture", grouped=True, xaxis_type="log"
    )
    if "on_front" in stored:
        front = stored[stored["on_front"].astype(bool)].sort_values("bytes_per_picture")
        note = "The nearest approximation for a budget: nothing of fewer bytes has a higher cosine."
        blocks.append(Table("What to store", front, ("bytes_per_picture", "method", "rank", "format", "cosine"), note))
    return blocks


def _task(stored: pd.DataFrame) -> list[Figure | Table]:
    """IoU over the rank of what was not rounded."""
    computed = stored[stored["format"] == COMPUTED]
    by_method = {str(name): rows.sort_values("rank") for name, rows in computed.groupby("method", sort=False)}
    drawn = [
        _line(name, rows["rank"].tolist(), rows["task_iou"].tolist(), error=rows["task_change_se"].tolist())
        for name, rows in by_method.items()
    ]
    axis = {"type": "log", "tickvals": sorted({rank for line in drawn for rank in line.x})}
    return [Figure("lowrank-task", "IoU over the rank", ABOUT_TASK, lines(drawn, "rank", "IoU", xaxis=axis))]


def _by_picture(images: pd.DataFrame) -> list[Figure]:
    """Each measure by picture, sorted by the SVD's cosine."""
    by_method = {str(name): rows.drop_duplicates("dataset_id") for name, rows in images.groupby("method")}
    names = _in_order([*by_method])
    order = by_method[names[0]].sort_values("cosine")["dataset_id"].tolist()
    tables = {name: by_method[name].set_index("dataset_id").reindex(order) for name in names}
    numbers, views = list(range(1, len(order) + 1)), {}
    for measure, words in MEASURES.items():
        if measure in images and pd.api.types.is_numeric_dtype(images[measure]):
            views[words] = [_line(name, numbers, t[measure].tolist(), text=order) for name, t in tables.items()]
    note = f"Pictures in the order of the cosine of {names[0]}; hovering names the picture."
    return choosable("lowrank-pictures", "Every measure by test picture", note, views, "test picture")


def _histories(results: Results) -> list[Figure]:
    """Training curves; empty if there are no networks."""
    drawn = []
    for path in results.find("data/lowrank/results/*/history.json"):
        epochs = results.json(path, list[Epoch]) or []
        drawn.append(Line(path.split("/")[-2], [e.epoch for e in epochs], [e.val_cosine for e in epochs], path))
    if not drawn:
        return []
    layout = whole_numbers([x for line in drawn for x in line.x])
    figure = lines(drawn, "epoch", "cosine on the validation pictures", **layout)
    return [Figure("lowrank-training", "Trainings", "The cosine on validation pictures after each epoch.", figure)]


def _methods(details: Details) -> Table:
    rows = [
        {"method": name, "control": name in CONTROLS}
        | {f"{key} {part}": value for key, spread in details.methods[name].items() for part, value in spread.items()}
        | {"operations per picture": details.flops_per_picture.get(name)}
        for name in _in_order([*details.methods])
    ]
    spreads = [f"{key} {part}" for key in MAIN for part in ("mean", "std")]
    main = ["method", "control", *spreads, "operations per picture"]
    return Table("Methods", pd.DataFrame(rows), main, f"Means over {details.num_images or 'the'} test pictures.")
