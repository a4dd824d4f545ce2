"""Device, number of processes and threads, and seed of a computation."""

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
    """`auto` is the first available of cuda, mps and cpu; ValueError for a device that is not available."""
    if name not in DEVICES:
        raise ValueError(f"device={name!r}: allowed are {', '.join(DEVICES)}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, here in available.items() if here))
    if not available[name]:
        raise ValueError(f"device={name!r}: not available on this machine; use auto or cpu")
    return torch.device(name)


def make_repeatable(*, seed: int, threads: int) -> None:
    """Sets torch's seed and number of threads for this process; the threads decide the last bits of a sum."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def float64_place(device: torch.device) -> torch.device:
    """The device for float64 work on data that lies on `device`: the same, or the CPU for mps, which lacks float64."""
    return torch.device("cpu") if device.type == "mps" else device


def free_device_memory(device: torch.device) -> int:
    """Free bytes of a GPU; 0 for a device that uses the system's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def solve(solver: Callable[..., T], *matrices: Tensor) -> T:
    """`solver` on the matrices in float64, on their device; on the CPU for mps, or if the GPU has too little memory.

    Too little GPU memory is reported in one line. The result stays on the device that computed it.
    """
    placed = [m.to(float64_place(m.device)) for m in matrices]
    try:
        return solver(*placed)
    except torch.OutOfMemoryError:
        sizes = " and ".join(str(list(m.shape)) for m in matrices)
        print(f"note: too little GPU memory to solve for {sizes}; computed on the CPU", file=sys.stderr)
        return solver(*(m.cpu() for m in placed))


def compiled_or_eager(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The compiled model, or the model itself if compiling fails (no C compiler, no Triton); then one line says so."""
    try:
        torch.compile(torch.relu)(torch.ones(1, device=device))
    except (RuntimeError, ImportError, OSError) as e:
        reason = " ".join(str(e).split())[:200]
        print(f"note: torch.compile does not work here ({reason}); training without it", file=sys.stderr)
        return model
    return torch.compile(model)


PATIENCE = timedelta(hours=12)  # one process may still be at its largest matrix when the others are done


LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection refused|NCCL.*remote", re.IGNORECASE)
"""Parts of the messages of gloo and NCCL when another process has ended."""


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Reports in one line that another process has ended, whose message has the reason; other errors pass."""
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
    """This process among the processes that share the work."""

    rank: int = 0
    """Index of this process."""
    count: int = 1
    """Number of processes."""
    wait: Callable[[], None] = _nobody_to_wait_for
    """Blocks until every process has called it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the output that exists only once."""
        return self.rank == 0

    def from_main(self, value: T) -> T:
        """The main process's value, in every process; all processes must call it."""
        if self.count == 1:
            return value
        from torch.distributed import broadcast_object_list

        values = [value]
        with lost_processes_named():
            broadcast_object_list(values, src=0)
        return values[0]

    def any_of(self, value: bool) -> bool:
        """Whether `value` is true in any process; all processes must call it."""
        if self.count == 1:
            return value
        from torch.distributed import all_gather_object

        values = [False] * self.count
        with lost_processes_named():
            all_gather_object(values, value)
        return any(values)


def is_main_process() -> bool:
    """Whether this process prints and tracks; read from the environment, without setting anything up."""
    return _whole_number("RANK", 0) == 0


def _whole_number(name: str, default: int) -> int:
    given = os.environ.get(name, str(default))
    if not given.isdecimal():
        raise ValueError(f"{name}={given!r} in the environment is no whole number; unset it, or use accelerate launch")
    return int(given)


def processes(*, cpu: bool) -> Processes:
    """The processes that `accelerate launch` started (gloo if `cpu`), or this one alone.

    accelerate is imported only if WORLD_SIZE > 1 in the environment.
    """
    if _whole_number("WORLD_SIZE", 1) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, lost_processes_named()(state.wait_for_everyone))


def split_by_cost(costs: Sequence[float], num_processes: int) -> list[list[int]]:
    """Indices of `costs` for each process: longest first to the least loaded one (LPT; at most 4/3 of the best split).

    Graham 1969, Bounds on multiprocessing timing anomalies. Ties go to the lower index, so all processes get the same
    answer.
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
