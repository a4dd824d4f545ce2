"""Load of the machine during a run: `TRACKING_SYSTEM=on` records it every ten seconds."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

SECONDS = 10.0
"""Seconds between two points, as in MLflow."""


def system_wanted() -> bool:
    """Whether TRACKING_SYSTEM=on is set."""
    return os.environ.get("TRACKING_SYSTEM", "off").lower() in {"on", "1", "true", "yes"}


@contextmanager
def watched_system(log: Callable[[Mapping[str, float], int], None], *, seconds: float = SECONDS) -> Iterator[None]:
    """`log(metrics, step)` gets the machine's load from a thread of its own while the block lasts.

    Names are MLflow's, by which its UI shows them under *System metrics*. MLflow's own watcher has a client of its own
    and ends when the store goes away.
    """
    stop = threading.Event()

    def watch() -> None:
        load, step = _Load(), 0
        while not stop.wait(seconds if step else min(seconds, 1.0)):
            log(load.measure(), step)
            step += 1

    thread = threading.Thread(target=watch, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Load:
    """Processor, memory, disk, network and GPUs; traffic is counted from the creation of this object."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the next call says the mean since this one
        self._process, self._sent = psutil.Process(), psutil.net_io_counters()

    def measure(self) -> dict[str, float]:
        memory, disk, net = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
        }
        if net and self._sent:  # a container may hide them
            found["network_receive_megabytes"] = (net.bytes_recv - self._sent.bytes_recv) / 1e6
            found["network_transmit_megabytes"] = (net.bytes_sent - self._sent.bytes_sent) / 1e6
        return {f"system/{name}": value for name, value in (found | _gpus()).items()}


def _gpus() -> dict[str, float]:
    """Memory of each GPU that this process already uses; no GPU is initialised here."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    found = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / 1e6
        found[f"gpu_{number}_memory_usage_percentage"] = 100 * (total - free) / total
    return found
