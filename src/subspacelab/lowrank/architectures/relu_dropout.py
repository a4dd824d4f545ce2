"""ReLU and dropout in one step: on a CPU they are half of a training step, most of it drawing random numbers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # a draw of 64 bits decides four entries, each with a probability of 1/65536 precision


class ReluDropout(nn.Module):
    """dropout(relu(x)) while training, relu(x) otherwise; entries are drawn from torch's global generator."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.dropout):
            return F.relu(x)
        if x.device.type != "cpu":
            return F.dropout(F.relu(x), self.dropout)
        kept: Tensor = _Keep.apply(x, self.dropout)
        return kept


class _Keep(torch.autograd.Function):
    """x / (1 - p) where x > 0 and a draw says so, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
        # One tensor, changed in place: fresh ones cost more than the arithmetic, and a choice by booleans thrice it.
        kept = levels.to(x.dtype).ge_(round(p * LEVELS) - LEVELS // 2).mul_(1 / (1 - p)).mul_(x).clamp_min_(0)
        ctx.save_for_backward(kept)  # the next layer keeps it too: no mask is held
        ctx.scale = 1 / (1 - p)
        return kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.threshold_backward(gradient, kept, 0.0)
        return passed.mul_(ctx.scale), None
