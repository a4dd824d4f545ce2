"""Batches of features, read ahead while the network computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.lowrank.features import Features
from subspacelab.lowrank.normalisation import Normalisation


def epoch_order(rows: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The rows in an order drawn from (seed, epoch)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def batches_of(rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """Consecutive batches; the last may be smaller."""
    return [list(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def read_batches(
    features: Features, batches: Sequence[Sequence[int]], normalisation: Normalisation, device: torch.device
) -> Iterator[Float[Tensor, "batch tokens dim"]]:
    """Normalised features of each batch on `device`, the next one on its way meanwhile.

    For a GPU a thread reads ahead into pinned memory. On a CPU the system is told which pages come next: a thread of
    ours would take cores from the network.
    """
    read = _read_pinned if device.type == "cuda" else _read_in_place
    for x in read(features, batches):
        yield normalisation.apply(x.to(device, non_blocking=True))


def _read_in_place(features: Features, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    for batch, following in zip_longest(batches, batches[1:], fillvalue=()):
        features.will_need(following)
        yield features.read(batch)


def _read_pinned(features: Features, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(lambda rows: features.read(rows).pin_memory(), rows) for rows in batches[:1]]
        for following in [*batches[1:], None]:
            x = ahead.pop().result()
            if following is not None:
                ahead.append(reader.submit(lambda rows: features.read(rows).pin_memory(), following))
            yield x
