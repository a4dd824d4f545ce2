"""What a method costs: floating-point operations for one picture, counted without computing."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from subspacelab.lowrank.methods import approximations
from subspacelab.lowrank.state import TrainedModel


def flops_per_picture(models: Mapping[str, TrainedModel], rank: int, tokens: int, dim: int) -> dict[str, int]:
    """Method to operations that form its approximation of one X [tokens, dim] at `rank`; a multiply-add is two.

    Matrix products are counted by torch, `qr` and `eigh` by `qr_flops` and `eigh_flops`; elementwise work is left out.
    All tensors are on the meta device, so the numbers depend on the shapes alone.
    """
    on_meta = {name: replace(trained, model=deepcopy(trained.model).to("meta")) for name, trained in models.items()}
    basis = torch.empty(dim, dim, dtype=torch.float64, device="meta")
    formulas = {torch.ops.aten.linalg_qr: _qr, torch.ops.aten._linalg_eigh: _eigh}
    found: dict[str, int] = {}
    for name, approximate in approximations(on_meta, basis, rank, seed=0).items():
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            approximate(torch.empty(1, tokens, dim, device="meta"))
        found[name] = counter.get_total_flops()
    return found


def qr_flops(m: int, n: int) -> int:
    """Householder QR of [m, n], m >= n, and its Q [m, n]: 2 n^2 (m - n/3) each (Golub & Van Loan, 5.2)."""
    return 4 * n * n * (3 * m - n) // 3


def eigh_flops(n: int) -> int:
    """Symmetric eigenproblem of side n with vectors: 4/3 n^3 to a tridiagonal, 4/3 n^3 for divide and conquer, 2 n^3
    back (Demmel 1997, 5.3). Deflation makes the second one smaller: an upper bound."""
    return 14 * n**3 // 3


def _qr(shape: Any, *_: Any, **__: Any) -> int:
    return int(torch.Size(shape[:-2]).numel()) * qr_flops(*shape[-2:])


def _eigh(shape: Any, *_: Any, **__: Any) -> int:
    return int(torch.Size(shape[:-2]).numel()) * eigh_flops(shape[-1])
