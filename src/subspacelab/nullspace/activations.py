"""What a verification needs of the layers' inputs: a few tokens as they are, all of them as sums."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subspacelab.core.callbacks import Advance
from subspacelab.core.devices import float64_place
from subspacelab.data.windows import Windows
from subspacelab.linalg.moments import SecondMoment
from subspacelab.nullspace.calibration import inputs_to, run_trunk


@dataclass(frozen=True)
class Inputs:
    """Of one distinct input."""

    sample: Float[Tensor, "samples dim"]
    """The tokens that were chosen."""
    first: Float[Tensor, "windows dim"]
    """The first token of each window: the begin token where the tokenizer has one, which attention uses as a sink."""
    moment: Float[Tensor, "dim dim"] | None
    """X^T X over all tokens, float64; None if it was not asked for."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Module that reads this input -> ||Q X||_F / ||X||_F over all tokens, for each Q that was given."""


def choose_tokens(mask: Bool[Tensor, "n length"], num_samples: int, seed: int) -> Bool[Tensor, "n length"]:
    """Marks `num_samples` tokens: as many from each window as from the others (to one), anywhere in it, no padding.

    A window that is too short gives what it has. The first tokens of the first window, the sink among them, would
    say little of all the others.
    """
    if num_samples < 1:
        raise ValueError(f"max_activation_samples: {num_samples} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    share, extra = divmod(num_samples, len(mask))
    favoured = torch.randperm(len(mask), generator=generator)[:extra].tolist()
    chosen = torch.zeros_like(mask)
    for i, row in enumerate(mask):
        places = row.nonzero().flatten()
        picked = torch.randperm(len(places), generator=generator)[: share + (i in favoured)]
        chosen[i, places[picked]] = True
    return chosen


@torch.inference_mode()
def collect_inputs(
    model: Any,
    layers: Mapping[str, nn.Module],
    windows: Windows,
    chosen: Bool[Tensor, "n length"],
    *,
    moments: bool = False,
    bases: Mapping[str, Mapping[str, Float[Tensor, "r dim"]]] | None = None,
    batch_size: int,
    advance: Advance = lambda _: None,
) -> dict[str, Inputs]:
    """Runs the windows through the model and keeps of each layer's input what `Inputs` says; padding never enters.

    `bases` holds, for an input's name, modules and the orthonormal rows Q whose ratios are wanted.
    """
    seen: dict[str, Tensor] = {}
    samples: dict[str, list[Tensor]] = {name: [] for name in layers}
    first: dict[str, list[Tensor]] = {name: [] for name in layers}
    sums: dict[str, SecondMoment] = {}
    whole: dict[str, float] = defaultdict(float)  # ||X||_F^2 of an input
    inside: dict[str, float] = defaultdict(float)  # ||Q X||_F^2 of a module
    bases = bases or {}
    with inputs_to(layers, seen.__setitem__):
        for rows in torch.arange(len(windows.input_ids)).split(batch_size):
            mask = windows.attention_mask[rows].to(model.device)
            run_trunk(model, windows.input_ids[rows], mask)
            for name, given in seen.items():
                x = given.view(*mask.shape, -1)
                samples[name].append(x[chosen[rows].to(x.device)].cpu())
                first[name].append(x[torch.arange(len(x)), mask.int().argmax(1)].cpu())
                place = float64_place(x.device)
                if moments:
                    sums.setdefault(name, SecondMoment(x.shape[-1], place)).add(x[mask])
                if name in bases:
                    tokens = x[mask].to(place).double()
                    whole[name] += tokens.square().sum().item()
                    for module, q in bases[name].items():
                        inside[module] += (tokens @ q.to(place).T).square().sum().item()
            advance(len(rows))
    return {
        name: Inputs(
            torch.cat(samples[name]),
            torch.cat(first[name]),
            sums[name].matrix() if moments else None,
            {module: math.sqrt(inside[module] / (whole[name] or 1)) for module in bases.get(name, ())},
        )
        for name in layers
    }
