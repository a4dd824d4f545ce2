"""Which device a computation runs on, by how many threads and from which seed."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda", "mps")


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


def make_repeatable(*, seed: int, threads: int) -> None:
    """Sets torch's global generator and its threads, which decide the last bits of a sum, for this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def float64_place(device: torch.device) -> torch.device:
    """Where float64 is computed for what lies on `device`: there, or on the CPU for mps, which knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def solve(solver: Callable[..., T], *matrices: Tensor) -> T:
    """`solver` of float64 on the matrices where they lie; on the CPU for mps, and for a GPU that has no room for it.

    The second is said in one line. What comes back lies where it was computed.
    """
    placed = [m.to(float64_place(m.device)) for m in matrices]
    try:
        return solver(*placed)
    except torch.OutOfMemoryError:
        sizes = " and ".join(str(list(m.shape)) for m in matrices)
        print(f"note: no room on the GPU to solve for {sizes}; computed on the CPU", file=sys.stderr)
        return solver(*(m.cpu() for m in placed))


def compiled_or_eager(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The model compiled, or as it is where nothing compiles (no C compiler, no Triton); one line says so."""
    try:
        torch.compile(torch.relu)(torch.ones(1, device=device))
    except (RuntimeError, ImportError, OSError) as e:
        reason = " ".join(str(e).split())[:200]
        print(f"note: torch.compile does not work here ({reason}); training without it", file=sys.stderr)
        return model
    return torch.compile(model)
