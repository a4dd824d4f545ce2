"""Linear layers computed by oneDNN on a CPU; torch uses MKL, which uses AVX-512 only on Intel's chips.

The operator is a private one of torch, so it is isolated in this file; if it is missing, `F.linear` is used. The gain
depends on the chip: large on an Intel with AVX-512, almost none on a Zen 4 (docs/findings.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_OPERATOR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""The operator that torch.compile uses for linear layers."""


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b for x [..., in], weight [out, in] and bias [out]."""
    # The device first: torch.compile, which a GPU has, breaks its graph at the question for oneDNN.
    may = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not (may and _OPERATOR is not None and torch.backends.mkldnn.is_available()):
        return F.linear(x, weight, bias)
    y: Tensor = _OneDNN.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], -1)


class _OneDNN(torch.autograd.Function):
    """y = x W^T + b for x [rows, in]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (
            _product(gradient, weight.T) if ctx.needs_input_grad[0] else None,
            _of_transposed(gradient, x) if ctx.needs_input_grad[1] else None,
            gradient.sum(0) if ctx.needs_input_grad[2] else None,
        )


def _of_transposed(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, in pieces, because oneDNN copies transposed matrices, which is slow for long rows."""
    pieces = [_product(a.T, b.T) for a, b in zip(left.split(1024), right.split(1024), strict=True)]
    return torch.stack(pieces).sum(0) if len(pieces) > 1 else pieces[0]


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left right^T + bias."""
    assert _OPERATOR is not None
    product: Tensor = _OPERATOR(left, right, bias, "none", [], "")
    return product
