"""Which device and how many processes and threads a computation runs on, and from which seed."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
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


def free_device_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 for a device whose memory is the system's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


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


PATIENCE = timedelta(hours=12)  # one process may still be at its largest matrix when the others are done


LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection refused|NCCL.*remote", re.IGNORECASE)
"""What gloo and NCCL say where another process is gone."""


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Says in one line that another process is gone, whose own message has the reason; other errors pass."""
    try:
        yield
    except RuntimeError as e:
        if LOST.search(str(e)) is None:
            raise
        raise ConnectionError("another of the processes has ended, so this one ends too; its message says why") from e


def _nobody_to_wait_for() -> None:
    return None


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    rank: int = 0
    """Index of this process."""
    count: int = 1
    """Number of processes."""
    wait: Callable[[], None] = _nobody_to_wait_for
    """Returns when every process has called it."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes what exists once."""
        return self.rank == 0

    def from_main(self, value: T) -> T:
        """The main process's value, in every process; all must call it."""
        if self.count == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        with lost_processes_named():
            broadcast_object_list(values, src=0)
        return values[0]

    def any_of(self, value: bool) -> bool:
        """Whether `value` is true in any process; all must call it."""
        if self.count == 1:
            return value
        from torch.distributed import all_gather_object

        values = [False] * self.count
        with lost_processes_named():
            all_gather_object(values, value)
        return any(values)


def is_main_process() -> bool:
    """Whether this process is the one that prints and tracks; known from the environment, nothing is set up."""
    return _whole_number("RANK", 0) == 0


def _whole_number(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal():
        raise ValueError(f"{name}={given!r} in the environment is no whole number; unset it, or use accelerate launch")
    return int(given)


def processes(*, cpu: bool) -> Processes:
    """The processes that `accelerate launch` started (gloo when `cpu`), or this one alone.

    Without WORLD_SIZE > 1 in the environment nothing of accelerate is imported.
    """
    if _whole_number("WORLD_SIZE", 1) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, lost_processes_named()(state.wait_for_everyone))


def split_by_cost(costs: Sequence[float], num_processes: int) -> list[list[int]]:
    """Indices of `costs` for each process, longest first to the least loaded (LPT; at most 4/3 of the best split).

    Graham 1969, Bounds on multiprocessing timing anomalies. Ties go to the lower index, so every process that asks
    gets the same answer.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes={num_processes}: at least 1")
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0.0] * num_processes
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = min(range(num_processes), key=lambda p: (loads[p], p))
        shares[least].append(index)
        loads[least] += costs[index]
    return shares
