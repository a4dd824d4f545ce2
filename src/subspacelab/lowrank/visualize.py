"""Where in the picture a rank-r approximation errs, channel by channel, and how the cosine grows with the rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.files import write_json
from subspacelab.linalg.token_svd import token_svd
from subspacelab.lowrank.baselines import CONTROLS, SVD, Evaluation, approximations, open_evaluation, train_basis
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.plots import draw_channels, draw_errors, draw_overlay, draw_rank_curve
from subspacelab.lowrank.preparation import batches_of, read_batches

BATCH = 16
CURVE = (8, 16, 32, 64, 128, 256)


def file_names(image_idx: int) -> tuple[str, ...]:
    """What `visualize` writes for a picture."""
    of_one = (f"{kind}_{image_idx}.png" for kind in ("channels", "errors", "overlay"))
    return (*of_one, "rank_curve.png", "rank_curve.json")


@dataclass(frozen=True)
class Views:
    """What `visualize` drew."""

    pictures: list[Path]
    """channels, errors, overlay and rank curve."""
    curve: dict[str, dict[str, float]]
    """Method to rank to mean cosine of the test pictures; also in rank_curve.json."""


@torch.no_grad()
def visualize(
    features: Features,
    results_dir: Path,
    output_dir: Path,
    *,
    archs: Sequence[str] = (),
    rank: int,
    image_idx: int = 0,
    channels: int = 8,
) -> Views:
    """Draws one test picture's channels, |errors| and summed error by method, and the rank curve of all test pictures.

    `image_idx` counts the test pictures from 0. Raises ValueError for a picture or a number of channels there is not.
    """
    evaluation = open_evaluation(features, results_dir, archs, rank)
    if not 0 <= image_idx < len(evaluation.rows):
        raise ValueError(f"image_idx: {image_idx}, there are test pictures 0 to {len(evaluation.rows) - 1}")
    if not 1 <= channels <= features.meta.dim:
        raise ValueError(f"channels: {channels}, the features have 1 to {features.meta.dim}")
    basis = train_basis(features, evaluation.seed, evaluation.normalisation)
    pictures = _draw_one(features, evaluation, basis, output_dir, image_idx=image_idx, channels=channels)
    curves, points = _rank_curves(features, evaluation, basis)
    pictures.append(draw_rank_curve(output_dir / "rank_curve.png", curves, points, features.meta.full_rank))
    table = {name: {str(r): c for r, c in curve.items()} for name, curve in curves.items()}
    table |= {name: {str(r): c} for name, (r, c) in points.items()}
    write_json(output_dir / "rank_curve.json", table)
    return Views(pictures, table)


def _draw_one(
    features: Features,
    evaluation: Evaluation,
    basis: Float[Tensor, "dim dim"],
    output_dir: Path,
    *,
    image_idx: int,
    channels: int,
) -> list[Path]:
    """Channels, their errors, and the error summed over all channels, of one test picture on its plane."""
    row, side = evaluation.rows[image_idx], features.meta.side
    x, picture = evaluation.normalisation.apply(features.read([row])), features.picture(row)
    methods = approximations(evaluation.models, basis, evaluation.rank, evaluation.seed)
    approximated = {name: approximate(x) for name, approximate in methods.items() if name not in CONTROLS}

    def maps(y: Tensor) -> Tensor:
        return y[0, :, :channels].float().T.reshape(channels, side, side)

    original, by_method = maps(x).numpy(), {name: maps(y).numpy() for name, y in approximated.items()}
    summed = {name: (y - x)[0].float().abs().sum(dim=1).reshape(side, side).numpy() for name, y in approximated.items()}
    of_channels, of_errors, overlay = (output_dir / name for name in file_names(image_idx)[:3])
    rank = features.meta.describe_rank(evaluation.rank)
    return [
        draw_channels(of_channels, original, by_method, picture, rank=rank),
        draw_errors(of_errors, original, by_method, picture, rank=rank),
        draw_overlay(overlay, summed, picture, rank=rank),
    ]


def _rank_curves(
    features: Features, evaluation: Evaluation, basis: Float[Tensor, "dim dim"]
) -> tuple[dict[str, dict[int, float]], dict[str, tuple[int, float]]]:
    """Mean cosine over the test pictures: SVD and controls at every rank, networks at theirs."""
    ranks = [r for r in CURVE if r <= features.meta.full_rank] or [evaluation.rank]
    methods = {r: approximations(evaluation.models, basis, r, evaluation.seed) for r in ranks}
    sums: dict[str, dict[int, float]] = {name: dict.fromkeys(ranks, 0.0) for name in (SVD, *CONTROLS)}
    points = dict.fromkeys(evaluation.models, 0.0)
    for x in read_batches(features, batches_of(evaluation.rows, BATCH), evaluation.normalisation, torch.device("cpu")):
        optimum = token_svd(x).cosines()
        for r in ranks:
            sums[SVD][r] += optimum[:, r - 1].sum().item()
            for name in CONTROLS:
                sums[name][r] += similarity(x, methods[r][name](x)).cosine.sum().item()
        for name, trained in evaluation.models.items():
            points[name] += similarity(x, trained.model(x)[2]).cosine.sum().item()
    count = len(evaluation.rows)
    curves = {name: {r: total / count for r, total in curve.items()} for name, curve in sums.items()}
    return curves, {name: (evaluation.rank, total / count) for name, total in points.items()}
