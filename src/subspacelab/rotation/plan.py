"""Which tensors of a checkpoint are decomposed, which are skipped and why, and what each will cost."""

import re
from dataclasses import dataclass

from subspacelab.checkpoints import Checkpoint, TensorInfo, matrix_shape


@dataclass(frozen=True)
class Plan:
    """The work that a checkpoint is for `decompose`."""

    shapes: dict[str, tuple[int, int]]
    """Checkpoint key to the matrix shape [shape[0], -1] of each tensor that is decomposed."""
    skipped: dict[str, str]
    """Checkpoint key to the reason of each that is not."""


def _pattern(flag: str, regex: str | None) -> re.Pattern[str] | None:
    try:
        return None if regex is None else re.compile(regex)
    except re.error as e:
        raise ValueError(f"{flag}={regex!r}: not a regular expression ({e})") from e


def _skip_reason(info: TensorInfo, include: re.Pattern[str] | None, exclude: re.Pattern[str] | None) -> str | None:
    if include is not None and not include.search(info.name):
        return f"left out by include={include.pattern!r}"
    if exclude is not None and exclude.search(info.name):
        return f"left out by exclude={exclude.pattern!r}"
    if len(info.shape) < 2:
        return "scalar" if not info.shape else "vector"
    if info.num_entries == 0:
        return "empty"
    return None


def make_plan(
    checkpoint: Checkpoint, *, rank: int | None, include: str | None = None, exclude: str | None = None
) -> Plan:
    """Sorts the tensors of `checkpoint` by what `decompose` does with them; reads headers only.

    Raises ValueError for a bad regular expression, a rank that a matrix does not have, a name that cannot be a file
    name, and when nothing is left to do.
    """
    included, excluded = _pattern("include", include), _pattern("exclude", exclude)
    shapes: dict[str, tuple[int, int]] = {}
    skipped: dict[str, str] = {}
    for name in checkpoint.names:
        info = checkpoint.info(name)
        reason = _skip_reason(info, included, excluded)
        if reason is not None:
            skipped[name] = reason
            continue
        if checkpoint.quantisation(name) is None and not info.is_floating:
            skipped[name] = f"not floating ({info.dtype})"
            continue
        checkpoint.require_floating(name)
        if "/" in name or name.startswith("."):
            raise ValueError(f"weight {name!r}: its name cannot be a file name; leave it out with exclude")
        shape = matrix_shape(info.shape)
        if rank is not None and not 1 <= rank <= min(shape):
            raise ValueError(
                f"rank={rank}: weight {name!r} of shape {shape[0]}x{shape[1]} allows 1 to {min(shape)}; "
                "choose one of these or leave the weight out with exclude"
            )
        shapes[name] = shape
    if not shapes:
        raise ValueError(
            f"{checkpoint.source.reference}: no weight is left to decompose with include={include!r}, "
            f"exclude={exclude!r}; there are {len(skipped)} tensors, such as {next(iter(skipped), None)!r}"
        )
    return Plan(shapes, skipped)


def gflop(shape: tuple[int, int]) -> float:
    """Cost of one decomposition: Gram matrix, other factor and check (2 l s^2 each), and `eigh` (about 12 s^3).

    `eigh` needs some 9 s^3 operations, few of them in matrix products: 12 is what it costs in product time.
    """
    short, long = min(shape), max(shape)
    return (6 * long * short**2 + 12 * short**3) / 1e9
