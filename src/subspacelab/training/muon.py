"""Muon: momentum with orthogonalised matrix updates, combined with AdamW for everything that is not a hidden matrix."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic that pulls singular values from (0, 1] towards 1 within 5 steps


def orthogonalise(gradient: Float[Tensor, "out in"], steps: int = 5) -> Float[Tensor, "out in"]:
    """Approximates U V^T of gradient = U S V^T: large singular values become about 0.7 to 1.2.

    Newton-Schulz iteration X <- a X + b (X X^T) X + c (X X^T)^2 X (Jordan et al. 2024; arXiv 2502.16982), in the
    gradient's own precision: bfloat16, usual on a GPU, is slower on a CPU.
    """
    a, b, c = NEWTON_SCHULZ
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.T if tall else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer for both kinds of parameters, so that there is one state to save and one schedule.

    Groups hold `params`, `muon` (bool), `weight_decay`, and `scale`, the ratio of their learning rate to the
    schedule's. Muon: nesterov momentum 0.95, step lr * max(1, rows/columns)^0.5 * orthogonalise(momentum).
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.98)
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": 0.95, "weight_decay": 0.0, "scale": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, group)

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
        direction = orthogonalise(parameter.grad + group["momentum"] * state["momentum"])
        stretch = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
        parameter.add_(direction, alpha=-group["lr"] * stretch)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["step"], state["mean"] = torch.tensor(0.0), torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        done = float(state["step"])
        mean = state["mean"] / (1 - first**done)
        spread = (state["square"] / (1 - second**done)).sqrt() + 1e-8
        parameter.addcdiv_(mean, spread, value=-group["lr"])


def muon_adamw(module: nn.Module, *, learning_rate: float, scale: float, weight_decay: float = 0.0) -> MuonAdamW:
    """Muon, at `scale` times the learning rate, for the hidden matrices of `module`; AdamW for the rest.

    Hidden matrices are neither embeddings (`embed` in the name) nor discarded heads (`head.` in front): rows of those
    are looked up or read one by one, not multiplied as a whole.
    """
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_hidden = parameter.ndim == 2 and "embed" not in name and not name.startswith("head.")
        (hidden if is_hidden else rest).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": hidden, "muon": True, "scale": scale, "weight_decay": weight_decay},
        {"params": rest, "muon": False},
    ]
    return MuonAdamW(groups, lr=learning_rate)
