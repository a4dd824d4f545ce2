"""What the base model learns from besides the answer: terms on the merged vision tokens that keep them rich."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subspacelab.data.patches import FRAMES, MERGE, PATCH
from subspacelab.demo.scenes import COLOURS


class TokenHead(nn.Module):
    """Reads the token's own pixels and each colour's word map off a merged token, linearly; thrown away afterwards."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(dim, MERGE * MERGE * 3 * PATCH * PATCH)
        self.maps = nn.Linear(dim, len(COLOURS))


def pixel_targets(pixel_values: Float[Tensor, "patches 1176"]) -> Float[Tensor, "tokens 2352"]:
    """The 28x28 pixels under each merged token: its four patches (consecutive rows), one of the two equal frames."""
    one = pixel_values.view(-1, 3, FRAMES, PATCH * PATCH)[:, :, 0]
    return one.reshape(-1, MERGE * MERGE * 3 * PATCH * PATCH)


def box_coverage(boxes: Float[Tensor, "batch 4"], size: int, side: int) -> Float[Tensor, "batch tokens"]:
    """Share of each of the side x side cells that the box x, y, w, h covers, in raster order."""
    cell = size / side
    low = torch.arange(side) * cell
    overlap = [
        (torch.minimum(boxes[:, i, None] + boxes[:, i + 2, None], low + cell) - torch.maximum(boxes[:, i, None], low))
        .clamp(min=0)
        .div(cell)
        for i in (0, 1)
    ]
    return (overlap[1][:, :, None] * overlap[0][:, None, :]).flatten(1)


def variance_covariance(
    tokens: Float[Tensor, "tokens dim"], deviation: float = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """VICReg's terms over a batch of tokens (arXiv 2105.04906).

    mean_j max(0, deviation - std_j), and sum_{i != j} R_ij^2 / dim with R the correlation matrix: standardised, so
    that small tokens do not pass for decorrelated ones.
    """
    centred = tokens - tokens.mean(0)
    std = (centred.var(0) + 1e-4).sqrt()
    standard = centred / std
    correlation = standard.T @ standard / (len(tokens) - 1)
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return F.relu(deviation - std).mean(), off_diagonal / tokens.shape[1]


def soft_bins(bins: Int[Tensor, "*batch"], num_bins: int, width: float) -> Float[Tensor, "*batch num_bins"]:
    """Target distributions exp(-(i - bin)^2 / (2 width^2)), normalised; width 0 gives one-hot."""
    if width == 0.0:
        return F.one_hot(bins, num_bins).float()
    distance = torch.arange(num_bins) - bins[..., None]
    return (-(distance**2) / (2 * width**2)).softmax(-1)
