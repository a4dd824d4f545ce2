"""The networks against the SVD, controls and their own start, on the test pictures: similarity, task, bytes, cost."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.files import read_json, write_csv, write_json
from subspacelab.lowrank.architectures import LowRankNet
from subspacelab.lowrank.baselines import (
    SVD,
    Evaluation,
    Models,
    approximations,
    flops_per_picture,
    num_power_steps,
    open_evaluation,
    train_basis,
    untrained,
)
from subspacelab.lowrank.config import RANKS
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.judging import open_judge
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.preparation import Normalisation, batches_of, read_batches
from subspacelab.lowrank.storage import COMPUTED, FORMATS, KEYS, TASK, X, measure_storage, summarise_storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 16
IMAGES, STORAGE = "comparison.csv", "rate_distortion.csv"
TABLES = (IMAGES, "metrics.json", STORAGE)
"""Files that `Comparison.save` writes."""
MEASURES = (
    "cosine",
    "token_cosine",
    "mse",
    "relative_error",
    "explained_variance",
    "share_of_svd",
    "residual_over_svd",
)
CHANGE = "cosine_change"
ROUNDING = torch.finfo(torch.float32).eps ** 2
"""Share of the energy lost to float32: if the SVD leaves no more, ratios of residuals are meaningless."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    images: pd.DataFrame
    """One row per method and test picture: method, dataset_id, MEASURES, CHANGE, the cosine less that of the same
    network before training (of networks alone), and with a judge `task_iou`, that of the box which its language model
    finds by these tokens, and `task_change`, the same less that by X itself.
    `share_of_svd` is cosine / cosine of the SVD, `residual_over_svd`
    ||X - Y||_F^2 / ||X - X_r||_F^2, without a value where the SVD is exact but for rounding."""
    metrics: dict[str, Any]
    """What was compared; mean and std over the pictures of each measure by method (of ratios the mean of the pictures'
    own); `training` by network: best epoch, mean CHANGE and its standard error over the pictures; `task` by method, and
    for X itself: mean task_iou, task_change and their standard errors, nothing without a judge; flops_per_picture;
    best_network, of the least validation MSE of those that read no test picture (all but the Sketch), if any."""
    storage: pd.DataFrame
    """One row per method, rank and format in which its factors are stored: see `summarise_storage`."""
    milliseconds: dict[str, float]
    """Method -> milliseconds per picture, the median over the batches of this run; not saved, since it differs in every
    run."""

    @property
    def headline(self) -> dict[str, float]:
        """Cosine of the SVD, the Sketch and the best network, and with a judge what IoU changes by SVD and network."""
        methods, task = self.metrics["methods"], self.metrics["task"]
        named = {"SVD": SVD, "Sketch": "Sketch", "network": self.metrics["best_network"]}
        found = {f"cosine_{label}": methods[name]["cosine"]["mean"] for label, name in named.items() if name in methods}
        judged = {label: name for label, name in named.items() if name in task and label != "Sketch"}
        return found | {f"task_change_{label}": task[name]["task_change"] for label, name in judged.items()}

    @property
    def table(self) -> pd.DataFrame:
        """One row per method: mean and deviation over the test pictures of each measure, cost, change by training."""
        rows = []
        for name, measures in self.metrics["methods"].items():
            moments = {f"{m}_{part}": value for m, found in measures.items() for part, value in found.items()}
            cost = {"flops_per_picture": self.metrics["flops_per_picture"][name], "ms": self.milliseconds.get(name)}
            changes = self.metrics["training"].get(name, {}) | self.metrics["task"].get(name, {})
            rows.append({"method": name} | moments | cost | changes)
        return pd.DataFrame(rows)

    def best_storage(self, budget: int, by: str = "cosine") -> "pd.Series[Any]":
        """The row of `storage` with the most of a measure that takes at most `budget` bytes per picture.

        ValueError for a budget that not even the smallest fits into, and for what was not measured.
        """
        if by not in self.storage or self.storage[by].isna().all():
            raise ValueError(f"by={by!r}: was not measured; give cosine, or task_iou after a comparison with a judge")
        measured = self.storage.dropna(subset=[by])
        fits = measured[measured["bytes_per_picture"] <= budget]
        if fits.empty:
            raise ValueError(f"budget: {budget} bytes, the smallest takes {measured['bytes_per_picture'].min()}")
        return fits.sort_values(by, kind="stable").iloc[-1]

    def plot(self, kind: str = "similarity") -> "Figure":
        """A matplotlib Figure: "similarity", "task" or "rate_distortion"; SettingError for others."""
        from subspacelab.lowrank.storage_plots import KINDS
        from subspacelab.plotting.figures import draw_kind

        return draw_kind(KINDS, kind, self)

    def save(self, folder: Path | str, *, metrics: str = "metrics.json") -> None:
        """Writes comparison.csv, rate_distortion.csv and, under its name, `metrics`, in the place of earlier ones.

        ValueError for other files of these names.
        """
        folder = Path(folder)
        for name, read in ((IMAGES, _read_images), (STORAGE, _read_storage), (metrics, _read_metrics)):
            if os.path.lexists(folder / name):
                read(folder / name)
        write_csv(folder / IMAGES, self.images)
        write_csv(folder / STORAGE, self.storage)
        write_json(folder / metrics, self.metrics)

    @classmethod
    def load(cls, folder: Path | str, *, metrics: str = "metrics.json") -> "Comparison":
        """What `save` wrote; milliseconds, which no two runs agree on, are in no file. ValueError for anything else."""
        folder = Path(folder)
        return cls(_read_images(folder / IMAGES), _read_metrics(folder / metrics), _read_storage(folder / STORAGE), {})


@torch.no_grad()
def compare(
    features: Features,
    models: Models,
    *,
    archs: Sequence[str] = (),
    rank: int | None = None,
    raw_inputs: bool = False,
    judge: Path | str | None = None,
    images: Path | str | None = None,
    judge_size: int | None = None,
    judged_formats: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Comparison:
    """Measures SVD, networks and controls at `rank`, in the space the networks were trained in.

    `models`: a trained network or several, or the results folder that holds them. `rank` is theirs.

    `raw_inputs` is an ablation: networks are given, and everything is compared on, raw features, whatever they were
    trained on. `judge`: a checkpoint whose language model reads the approximated tokens in the place of its own, and is
    asked the questions of `images`, the parquet data set with boxes that the features are of; `judge_size`: pixels
    per side that it was trained at, if less than theirs; `judged_formats`: of storage, whose IoU is measured. `ranks`:
    at which the SVD and two controls are stored and judged beside that of the networks.
    """
    evaluation = open_evaluation(features, models, archs, rank, device)
    rank = evaluation.rank
    basis = train_basis(features, evaluation)
    starts = {name: untrained(trained, basis) for name, trained in evaluation.models.items()}
    if raw_inputs:
        evaluation = replace(evaluation, normalisation=Normalisation())
        basis = train_basis(features, evaluation)
    judging = (features, evaluation.rows, evaluation.normalisation)
    opened = None if judge is None else open_judge(*judging, judge, images, judge_size, evaluation.device)
    table, milliseconds = _measure(features, evaluation, basis, starts, progress)
    asked = (ranks or RANKS, opened, judged_formats or FORMATS)
    stored = measure_storage(features, evaluation, basis, *asked, progress)
    storage, meta = summarise_storage(stored), features.meta
    if opened is not None:
        _add_task(table, stored, rank)
    by_method = {name: table[table["method"] == name] for name in table["method"].unique()}
    metrics: dict[str, Any] = {
        "rank": rank,
        "full_rank": meta.full_rank,
        "power_steps": num_power_steps(evaluation.models),
        "num_images": len(evaluation.rows),
        "normalisation": evaluation.normalisation.kind,
        "methods": {name: _summary(table) for name, table in by_method.items()},
        "training": {
            name: {"best_epoch": trained.epoch} | _paired(by_method[name][CHANGE])
            for name, trained in evaluation.models.items()
        },
        "task": {} if opened is None else _task_of(storage, rank),
        "flops_per_picture": flops_per_picture(evaluation.models, rank, meta.tokens, meta.dim),
    }
    networks = {name: trained.val_mse for name, trained in evaluation.models.items() if name != "Sketch"}
    metrics["best_network"] = min(networks, key=networks.__getitem__, default=None)
    return Comparison(table, metrics, storage, milliseconds)


def _add_task(images: pd.DataFrame, stored: pd.DataFrame, rank: int) -> None:
    """Each picture's IoU by method, as computed at the networks' rank, and its difference to that by X itself."""
    computed = stored[stored["format"] == COMPUTED]
    whole = computed[computed["method"] == X]["task_iou"].to_numpy()
    for name in images["method"].unique():
        ious = computed[(computed["method"] == name) & (computed["rank"] == rank)]["task_iou"].to_numpy()
        images.loc[images["method"] == name, ["task_iou", "task_change"]] = np.stack([ious, ious - whole], 1)


def _task_of(storage: pd.DataFrame, rank: int) -> dict[str, dict[str, float]]:
    """TASK by method, as computed at the networks' rank, and of X itself."""
    computed = storage[(storage["format"] == COMPUTED) & storage["rank"].eq(rank).where(storage["method"] != X, True)]
    return {row["method"]: {name: row[name] for name in TASK} for row in computed.to_dict("records")}


def _measure(
    features: Features,
    evaluation: Evaluation,
    basis: Float[Tensor, "dim k"],
    starts: dict[str, LowRankNet],
    progress: Progress,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """One row per method and test picture, and milliseconds of a picture by method."""
    methods = approximations(evaluation.models, basis, evaluation.rank, evaluation.seed)
    batches = batches_of(evaluation.rows, BATCH)
    found: list[pd.DataFrame] = []
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    with progress("compare", len(evaluation.rows), "pictures") as advance:
        read = read_batches(features, batches, evaluation.normalisation, evaluation.device)
        for batch, x in zip(batches, read, strict=True):
            best = similarity(x, methods[SVD](x))
            least = best.mse.where(1 - best.explained_variance > ROUNDING, torch.nan)
            ids = features.index["dataset_id"][batch].tolist()
            for name, approximate in methods.items():
                begin = _now(x.device)
                approximation = approximate(x)
                seconds[name].append((_now(x.device) - begin) / len(batch))
                near = similarity(x, approximation)
                start = similarity(x, starts[name](x)[2]).cosine if name in starts else torch.nan
                values = asdict(near) | {
                    "share_of_svd": near.cosine / best.cosine,
                    "residual_over_svd": near.mse / least,
                    CHANGE: near.cosine - start,
                }
                table = {key: value.tolist() for key, value in values.items()}
                found.append(pd.DataFrame({"method": name, "dataset_id": ids, **table}))
            advance(len(batch))
    return pd.concat(found, ignore_index=True), {name: 1000 * median(each) for name, each in seconds.items()}


def _now(device: torch.device) -> float:
    """Seconds, after the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _summary(images: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the pictures (population, so that one picture has 0); no measure without one."""
    have = [m for m in MEASURES if images[m].notna().any()]
    return {m: {"mean": float(images[m].mean()), "std": float(images[m].std(ddof=0))} for m in have}


def _paired(changes: "pd.Series[float]") -> dict[str, float]:
    """Mean and standard error over the pictures; the error of one picture is 0."""
    error = float(changes.std(ddof=0)) / max(1, len(changes) - 1) ** 0.5
    return {CHANGE: float(changes.mean()), f"{CHANGE}_se": error}


def _read_images(path: Path) -> pd.DataFrame:
    texts = {"method": str, "dataset_id": str}
    try:
        found = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])  # type: ignore[arg-type]
        _require({*texts, *MEASURES}, found)
    except (OSError, ValueError) as e:
        raise _no_comparison(path, e) from e
    return found


def _read_storage(path: Path) -> pd.DataFrame:
    try:
        found = pd.read_csv(path)
        _require({*KEYS, *TASK, "cosine"}, found)
    except (OSError, ValueError) as e:
        raise _no_comparison(path, e) from e
    return found


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path)
        _require({"methods", "training", "task", "flops_per_picture"}, found)
    except (OSError, ValueError, TypeError) as e:
        raise _no_comparison(path, e) from e
    return found


def _require(names: set[str], found: Iterable[Any]) -> None:
    if missing := names - {*found}:
        raise ValueError(f"no {min(missing)!r}")


def _no_comparison(path: Path, why: Exception) -> ValueError:
    said = f"{path}: missing, or not of a comparison of networks ({str(why).splitlines()[0]})"
    return ValueError(f"{said}; compare again, or give another folder")
