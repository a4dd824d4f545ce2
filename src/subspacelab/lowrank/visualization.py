"""Errors of a rank-r approximation on the picture plane, channel by channel, and the cosine over the rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.files import write_json
from subspacelab.linalg.token_svd import token_svd
from subspacelab.lowrank.baselines import (
    CONTROLS,
    SVD,
    Evaluation,
    Models,
    approximations,
    open_evaluation,
    train_basis,
)
from subspacelab.lowrank.config import RANKS
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.kept_pictures import CachedPicture, read_picture
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.preparation import batches_of, read_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 16


@dataclass(frozen=True)
class Views:
    """Channels and errors of one test picture on the picture plane, and the cosine over the rank."""

    image_idx: int
    """Index of the test picture."""
    rank: str
    """Such as "rank 128 of 256"."""
    picture: CachedPicture
    """The picture itself."""
    original: Float[np.ndarray, "channels side side"]
    """Its features, channel by channel."""
    approximations: dict[str, Float[np.ndarray, "channels side side"]]
    """Method -> approximation."""
    errors: dict[str, Float[np.ndarray, "side side"]]
    """Method -> |error| summed over all channels."""
    curves: dict[str, dict[int, float]]
    """SVD and controls -> rank -> mean cosine over the test pictures."""
    points: dict[str, tuple[int, float]]
    """Network -> its rank and mean cosine."""
    full_rank: int
    """The largest rank."""

    @property
    def curve(self) -> dict[str, dict[str, float]]:
        """Method to rank to mean cosine of the test pictures, as in rank_curve.json."""
        curves = {name: {str(r): c for r, c in curve.items()} for name, curve in self.curves.items()}
        return curves | {name: {str(r): c} for name, (r, c) in self.points.items()}

    def plot(self, kind: str = "channels") -> "Figure":
        """A matplotlib Figure: "channels", "errors", "overlay" or "rank_curve"; SettingError for others."""
        from subspacelab.lowrank.plots import VIEWS
        from subspacelab.plotting.figures import draw_kind

        return draw_kind(VIEWS, kind, self)

    def save(self, folder: Path) -> None:
        """Writes rank_curve.json."""
        write_json(folder / "rank_curve.json", self.curve)


@torch.no_grad()
def visualize(
    features: Features,
    models: Models,
    *,
    archs: Sequence[str] = (),
    rank: int | None = None,
    image_idx: int = 0,
    channels: int = 8,
    device: str = "auto",
) -> Views:
    """One test picture's channels, |errors| and summed error by method, and the rank curve of all test pictures.

    `image_idx` counts the test pictures from 0. Raises ValueError for a picture or a number of channels there is not.
    """
    evaluation = open_evaluation(features, models, archs, rank, device)
    if not 0 <= image_idx < len(evaluation.rows):
        raise ValueError(f"image_idx: {image_idx}, there are test pictures 0 to {len(evaluation.rows) - 1}")
    if not 1 <= channels <= features.meta.dim:
        raise ValueError(f"channels: {channels}, the features have 1 to {features.meta.dim}")
    basis = train_basis(features, evaluation)
    row, side = evaluation.rows[image_idx], features.meta.side
    x = evaluation.normalisation.apply(features.read([row]).to(evaluation.device))
    methods = approximations(evaluation.models, basis, evaluation.rank, evaluation.seed)
    approximated = {name: approximate(x) for name, approximate in methods.items() if name not in CONTROLS}

    def maps(y: Tensor) -> np.ndarray:
        return y[0, :, :channels].float().T.reshape(channels, side, side).cpu().numpy()

    def summed(y: Tensor) -> np.ndarray:
        return (y - x)[0].float().abs().sum(dim=1).reshape(side, side).cpu().numpy()

    curves, points = _rank_curves(features, evaluation, basis)
    return Views(
        image_idx,
        features.meta.describe_rank(evaluation.rank),
        read_picture(features, row),
        maps(x),
        {name: maps(y) for name, y in approximated.items()},
        {name: summed(y) for name, y in approximated.items()},
        curves,
        points,
        features.meta.full_rank,
    )


def _rank_curves(
    features: Features, evaluation: Evaluation, basis: Float[Tensor, "dim k"]
) -> tuple[dict[str, dict[int, float]], dict[str, tuple[int, float]]]:
    """Mean cosine over the test pictures: SVD and controls at every rank, networks at theirs."""
    ranks = [r for r in RANKS if r <= features.meta.full_rank] or [evaluation.rank]
    methods = {r: approximations(evaluation.models, basis, r, evaluation.seed) for r in ranks}
    sums: dict[str, dict[int, float]] = {name: dict.fromkeys(ranks, 0.0) for name in (SVD, *CONTROLS)}
    points = dict.fromkeys(evaluation.models, 0.0)
    batches = batches_of(evaluation.rows, BATCH)
    for x in read_batches(features, batches, evaluation.normalisation, evaluation.device):
        optimum = token_svd(x).cosines()
        for r in ranks:
            sums[SVD][r] += optimum[:, r - 1].sum().item()
            for name in CONTROLS:
                sums[name][r] += similarity(x, methods[r][name](x)).cosine.sum().item()
        for name, trained in evaluation.models.items():
            points[name] += similarity(x, trained.network(x)[2]).cosine.sum().item()
    count = len(evaluation.rows)
    curves = {name: {r: total / count for r, total in curve.items()} for name, curve in sums.items()}
    return curves, {name: (evaluation.rank, total / count) for name, total in points.items()}
