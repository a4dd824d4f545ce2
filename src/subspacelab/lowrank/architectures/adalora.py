"""AdaLoRA: the MLP's stacks with low-rank deltas, and a weight per column of A that an allocator can switch off."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subspacelab.lowrank.architectures.factor_networks import COLUMN_WIDTHS, ROW_WIDTHS, FactorNet, Factors, plain_stack
from subspacelab.lowrank.architectures.linear import linear

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
    """The MLP's stacks of `SVDLinear`; `lora_E` [rank, 1] scales the columns of A, and 0 takes one out."""

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
        """Which columns of A are live."""
        return self.lora_E.detach().flatten() != 0

    def current_effective_rank(self) -> int:
        """How many columns of A are live."""
        return int(self.effective_rank_mask().sum())

    def triplet(self) -> tuple[Tensor, Tensor, Tensor]:
        """lora_E and the weights [rank, width] of the two last layers: what the allocator scores row by row."""
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
