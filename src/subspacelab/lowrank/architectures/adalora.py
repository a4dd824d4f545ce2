"""AdaLoRA: the MLP's stacks with low-rank updates, and the allocator that switches off columns of A."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subspacelab.lowrank.architectures.factor_networks import COLUMN_WIDTHS, ROW_WIDTHS, FactorNet, Factors, plain_stack
from subspacelab.lowrank.architectures.linear import linear
from subspacelab.lowrank.config import AllocatorConfig

DELTA_RANK = 8
ALPHA = 16.0
INIT_STD = 0.02  # of lora_A and lora_B, as in AdaLoRA


class SVDLinear(nn.Linear):
    """y = W x + b + alpha / (k + 1e-5) lora_B lora_A x, lora_A [k, in], lora_B [out, k] (arXiv 2303.10512, eq. 3)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.lora_A = nn.Parameter(INIT_STD * torch.randn(DELTA_RANK, before))
        self.lora_B = nn.Parameter(INIT_STD * torch.randn(after, DELTA_RANK))

    def forward(self, x: Tensor) -> Tensor:
        delta = linear(linear(x, self.lora_A), self.lora_B)
        return linear(x, self.weight, self.bias) + ALPHA / (DELTA_RANK + 1e-5) * delta


class AdaLoRA(FactorNet):
    """The MLP's stacks of `SVDLinear`; `lora_E` [rank, 1] scales the columns of A, and 0 removes one."""

    def __init__(self, tokens: int, dim: int, rank: int, *, dropout: float, shortcut: bool) -> None:
        rows = plain_stack((dim, *ROW_WIDTHS, rank), dropout, SVDLinear)
        columns = plain_stack((tokens, *COLUMN_WIDTHS, rank), dropout, SVDLinear)
        super().__init__(rows, columns, dim, rank, shortcut=shortcut)
        self.lora_E = nn.Parameter(torch.ones(rank, 1))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Factors:
        """The two factors of each X."""
        a, b = super().forward(x)
        return Factors(a * self.lora_E.T, b)

    def effective_rank_mask(self) -> Bool[Tensor, " rank"]:
        """Which columns of A are active."""
        return self.lora_E.detach().flatten() != 0

    def current_effective_rank(self) -> int:
        """Number of active columns of A."""
        return int(self.effective_rank_mask().sum())

    def triplet(self) -> tuple[Tensor, Tensor, Tensor]:
        """lora_E and the weights [rank, width] of the two last layers, which the allocator scores row by row."""
        rows, columns = cast(nn.Linear, self.rows[-1]), cast(nn.Linear, self.columns[-1])
        return self.lora_E, rows.weight, columns.weight

    def orthogonality(self) -> Float[Tensor, ""]:
        """Mean over all lora_A, lora_B of ||A A^T - I||_F and ||B^T B - I||_F, as AdaLoRA's regulariser has it."""
        terms = []
        for module in self.modules():
            if isinstance(module, SVDLinear):
                eye = torch.eye(DELTA_RANK, device=module.lora_A.device)
                terms.append(torch.linalg.matrix_norm(module.lora_A @ module.lora_A.T - eye))
                terms.append(torch.linalg.matrix_norm(module.lora_B.T @ module.lora_B - eye))
        return torch.stack(terms).mean()


BETA = 0.85  # smoothing of sensitivity and of uncertainty, as in AdaLoRA


@dataclass(frozen=True)
class Schedule:
    """The budget over the steps of a training (arXiv 2303.10512, eq. 12)."""

    rank: int
    """Columns at the start."""
    target: int
    """Columns at the end: round(keep_ratio * rank)."""
    total_steps: int
    """Optimizer steps of the training."""
    config: AllocatorConfig
    """Warm-ups and interval."""

    def budget(self, step: int) -> tuple[int, bool]:
        """Number of columns that may be active at `step` (from 0), and whether this step masks."""
        first, last = self.config.init_warmup, self.total_steps - self.config.final_warmup
        if step <= first:
            return self.rank, False
        if step > last:
            return self.target, True
        left = 1 - (step - first) / (last - first)
        return int(self.target + (self.rank - self.target) * left**3), step % self.config.mask_interval == 0

    def is_final(self, steps: int) -> bool:
        """Whether the last of `steps` steps masked to the final budget."""
        return steps >= self.total_steps or steps - 1 > self.total_steps - self.config.final_warmup


def make_schedule(config: AllocatorConfig, *, rank: int, total_steps: int) -> Schedule:
    """ValueError, with the numbers, if the warm-ups leave no step between them."""
    if config.init_warmup >= total_steps - config.final_warmup:
        raise ValueError(
            f"allocator: init_warmup {config.init_warmup} + final_warmup {config.final_warmup} steps do not fit into"
            f" the {total_steps} steps of this training; shorten them or train longer"
        )
    return Schedule(rank, max(1, round(config.keep_ratio * rank)), total_steps, config)


class RankAllocator:
    """Scores triplets (E_i, row i of two weights) by sensitivity times uncertainty, and zeroes the weakest E_i.

    I = |p dL/dp|, Ibar <- b Ibar + (1-b) I, U <- b U + (1-b) |I - Ibar|, s = Ibar U, and
    S_i = s(E_i) + mean_j s(A_ij) + mean_j s(B_ij) (arXiv 2303.10512, eq. 8 to 11). Call it after the optimizer's
    step and before the gradients are cleared.
    """

    def __init__(self, schedule: Schedule, triplet: tuple[Tensor, Tensor, Tensor]) -> None:
        self.schedule = schedule
        self._triplet = triplet
        self._sensitivity = [torch.zeros_like(p) for p in triplet]
        self._uncertainty = [torch.zeros_like(p) for p in triplet]

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Updates the scores (until the final warm-up) and masks when the schedule says so."""
        if self.schedule.target == self.schedule.rank:
            return
        if step < self.schedule.total_steps - self.schedule.config.final_warmup:
            for p, mean, spread in zip(self._triplet, self._sensitivity, self._uncertainty, strict=True):
                now = (p * p.grad).abs().detach()  # type: ignore[operator]
                mean.mul_(BETA).add_((1 - BETA) * now)
                spread.mul_(BETA).add_((1 - BETA) * (now - mean).abs())
        budget, masks = self.schedule.budget(step)
        if masks and budget < self.schedule.rank:
            scores = self.scores()
            threshold = torch.kthvalue(scores, self.schedule.rank - budget).values
            self._triplet[0].masked_fill_((scores <= threshold)[:, None], 0.0)

    def scores(self) -> Float[Tensor, " rank"]:
        """S_i of every triplet."""
        e, a, b = (m * u for m, u in zip(self._sensitivity, self._uncertainty, strict=True))
        rows = torch.stack([a.mean(dim=1), b.mean(dim=1)], dim=1)
        return e.flatten() + rows.sum(dim=1)

    def state(self) -> dict[str, Tensor]:
        """The smoothed scores, to be saved with a training."""
        named = {"sensitivity": self._sensitivity, "uncertainty": self._uncertainty}
        return {f"{kind}/{i}": tensor for kind, tensors in named.items() for i, tensor in enumerate(tensors)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
