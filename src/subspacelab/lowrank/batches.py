"""Batches of features, read ahead while the network computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
    """Normalised features of each batch on `device`; a thread reads the next one (pinned for a GPU) meanwhile."""
    pins = device.type == "cuda"

    def read(rows: Sequence[int]) -> Tensor:
        x = features.read(rows)
        return x.pin_memory() if pins else x

    if not batches:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, batches[0])
        for following in [*batches[1:], None]:
            x = ahead.result()
            if following is not None:
                ahead = reader.submit(read, following)
            yield normalisation.apply(x.to(device, non_blocking=pins))
