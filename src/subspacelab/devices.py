"""Which device a computation runs on."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

DEVICES = ("auto", "cpu", "cuda", "mps")

T = TypeVar("T")


def choose_device(name: str) -> torch.device:
    """`auto` is cuda, mps or cpu, the first there is; a device that is not there is a ValueError that says so."""
    if name not in DEVICES:
        raise ValueError(f"device={name!r}: allowed are {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, here in available.items() if here))
    if not available[name]:
        raise ValueError(f"device={name!r}: not available on this machine; use auto or cpu")
    return torch.device(name)


def float64_place(device: torch.device) -> torch.device:
    """Where float64 is computed for what lies on `device`: there, or on the CPU for mps, which knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def or_on_cpu(solve: Callable[[Tensor], T], matrix: Tensor, what: str) -> T:
    """`solve(matrix)`, on the CPU if the GPU's memory does not hold what it needs; one line says so."""
    try:
        return solve(matrix)
    except torch.OutOfMemoryError:
        print(f"{what}: out of GPU memory; computed on the CPU", file=sys.stderr)
    return solve(matrix.cpu())  # out of the handler, whose traceback would hold the GPU's memory


def compiled_or_eager(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The model compiled, or as it is where nothing compiles (no C compiler, no Triton); one line says so."""
    try:
        torch.compile(torch.relu)(torch.ones(1, device=device))
    except (RuntimeError, ImportError, OSError) as e:
        reason = " ".join(str(e).split())[:200]
        print(f"torch.compile does not work here ({reason}); training without it", file=sys.stderr)
        return model
    return torch.compile(model)
