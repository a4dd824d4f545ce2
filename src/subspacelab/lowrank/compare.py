"""The networks against the SVD, and against controls, on the test pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from subspacelab.files import write_json
from subspacelab.lowrank.batches import batches_of, read_batches
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.figures.comparison import draw_comparison
from subspacelab.lowrank.figures.style import methods_of
from subspacelab.lowrank.measures import nearness
from subspacelab.lowrank.methods import SVD, Contest, approximations, open_contest, train_basis
from subspacelab.lowrank.normalisation import Normalisation
from subspacelab.reports.progress import progress_bar
from subspacelab.reports.tables import write_csv

BATCH = 16
PICTURE = "svd_nn_comparison.png"
MEASURES = ("cosine", "mse", "relative_error", "explained_variance", "share_of_svd")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found and wrote."""

    images: pd.DataFrame
    """method, dataset_id and the measures: one row per method and test picture."""
    metrics: dict[str, Any]
    """rank, num_images, normalisation, and mean and std of each measure by method."""
    output_dir: Path
    """Holds comparison.csv, metrics.json and the picture."""
    picture: Path
    """svd_nn_comparison.png."""


@torch.no_grad()
def compare(
    features: Features,
    results_dir: Path,
    output_dir: Path,
    *,
    archs: Sequence[str] = (),
    rank: int,
    raw_inputs: bool = False,
) -> Comparison:
    """Measures SVD, networks, one PCA basis and a random sketch at `rank`, in the space the networks were trained in.

    `raw_inputs` is an ablation: networks are given, and everything is compared on, raw features, whatever they were
    trained on. Writes comparison.csv, metrics.json and svd_nn_comparison.png.
    """
    contest = open_contest(features, results_dir, archs, rank)
    if raw_inputs:
        contest = replace(contest, normalisation=Normalisation())
    images = _measure(features, contest)
    metrics = {
        "rank": rank,
        "num_images": len(contest.rows),
        "normalisation": contest.normalisation.kind,
        "methods": {name: _summary(images[images["method"] == name]) for name in methods_of(images)},
    }
    write_csv(output_dir / "comparison.csv", images)
    write_json(output_dir / "metrics.json", metrics)
    picture = draw_comparison(output_dir / PICTURE, images, rank)
    return Comparison(images, metrics, output_dir, picture)


def _measure(features: Features, contest: Contest) -> pd.DataFrame:
    """One row per method and test picture."""
    basis = train_basis(features, contest.seed, contest.normalisation)
    methods = approximations(contest.models, basis, contest.rank, contest.seed)
    batches = batches_of(contest.rows, BATCH)
    found: list[pd.DataFrame] = []
    with progress_bar("compare", total=len(contest.rows), unit="pictures") as advance:
        read = read_batches(features, batches, contest.normalisation, torch.device("cpu"))
        for batch, x in zip(batches, read, strict=True):
            best = nearness(x, methods[SVD](x)).cosine
            ids = features.index["dataset_id"][batch].tolist()
            for name, approximate in methods.items():
                near = nearness(x, approximate(x))
                values = asdict(near) | {"share_of_svd": near.cosine / best}
                table = {key: value.tolist() for key, value in values.items()}
                found.append(pd.DataFrame({"method": name, "dataset_id": ids, **table}))
            advance(len(batch))
    return pd.concat(found, ignore_index=True)


def _summary(images: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the pictures (population, so that one picture has 0)."""
    return {m: {"mean": float(images[m].mean()), "std": float(images[m].std(ddof=0))} for m in MEASURES}
