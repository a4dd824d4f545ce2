"""What the pictures of a comparison have in common: the pairs, and groups by where they sit in the model."""

from dataclasses import dataclass

from subspacelab.reports.figures import COLOURS
from subspacelab.rotation.groups import Group

PLACES = {"visual.blocks": "vision block", "model.layers": "language layer"}


@dataclass(frozen=True)
class Pair:
    """How a pair of checkpoints is drawn."""

    key: str
    """Suffix of its columns."""
    label: str
    """Name in legends."""
    colour: str
    """Line colour."""
    marker: str
    """Marker."""


PAIR_STYLES = (
    Pair("01", "base → stage 1", COLOURS[0], "o"),
    Pair("12", "stage 1 → stage 2", COLOURS[1], "s"),
    Pair("02", "base → stage 2", COLOURS[2], "^"),
)


def place_of(group: Group) -> str:
    """What the layer index of a group counts, such as `vision block`."""
    name, layer = next((n, i) for n, i in group.members.items() if i is not None)
    stem = name.partition(f".{layer}.")[0]
    return PLACES.get(stem, stem)
