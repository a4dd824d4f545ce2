"""MLP: plain stacks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from subspacelab.lowrank.architectures.factors import FactorNet
from subspacelab.lowrank.architectures.linear import Linear
from subspacelab.lowrank.architectures.relu_dropout import ReluDropout

ROW_WIDTHS = (1024, 256)
COLUMN_WIDTHS = (512, 256)


class MLP(FactorNet):
    """Row network dim-1024-256-rank, column network tokens-512-256-rank; ReLU and dropout between."""

    def __init__(self, tokens: int, dim: int, rank: int, *, dropout: float, shortcut: bool) -> None:
        rows = plain_stack((dim, *ROW_WIDTHS, rank), dropout)
        columns = plain_stack((tokens, *COLUMN_WIDTHS, rank), dropout)
        super().__init__(rows, columns, dim, rank, shortcut=shortcut)


def plain_stack(
    widths: Sequence[int], dropout: float, linear: Callable[[int, int], nn.Module] = Linear
) -> nn.Sequential:
    """Layers of the given widths, ReLU and dropout after all but the last."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        if i:
            layers.append(ReluDropout(dropout))
        layers.append(linear(before, after))
    return nn.Sequential(*layers)
