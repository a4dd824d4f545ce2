"""Norm layers as curves over depth: one for each kind in each part of the model."""

from collections.abc import Iterable
from dataclasses import dataclass

from subspacelab.norms.results import Norm


@dataclass(frozen=True)
class Curve:
    """Layers of one kind, block by block."""

    tower: str
    """Part of the model."""
    label: str
    """The layers' name within a block."""
    blocks: tuple[int, ...]
    """Indices of the blocks, ascending."""
    abs_means: tuple[float, ...]
    """Mean |scale| of the layer in each."""

    @property
    def metric(self) -> str:
        """Name of the curve in a tracker; the step is the block."""
        return f"abs_mean/{self.tower}.{self.label}"


def depth_curves(norms: Iterable[Norm]) -> list[Curve]:
    """A curve per kind of norm that lies in blocks, in the order of the model."""
    kinds: dict[tuple[str, str], list[Norm]] = {}
    for norm in norms:
        if norm.layer.name.block is not None:
            kinds.setdefault((norm.layer.tower, norm.layer.name.kind), []).append(norm)
    curves = []
    for (tower, kind), members in kinds.items():
        points = sorted((n.layer.name.block or 0, n.scale.abs_mean) for n in members)
        label = kind.partition("{}.")[2]
        curves.append(Curve(tower, label, tuple(b for b, _ in points), tuple(m for _, m in points)))
    return curves


def short_name(norm: Norm) -> str:
    """The last two parts of the name of a norm outside the blocks."""
    return ".".join(norm.layer.name.layer.split(".")[-2:])


def outside_blocks(norms: Iterable[Norm], tower: str) -> list[Norm]:
    """The norms of a part of the model that belong to no block: stem, final, projector."""
    return [n for n in norms if n.layer.tower == tower and n.layer.name.block is None]


def towers_of(norms: Iterable[Norm]) -> list[str]:
    """The parts of the model that have norms, in its order."""
    return list(dict.fromkeys(n.layer.tower for n in norms))
