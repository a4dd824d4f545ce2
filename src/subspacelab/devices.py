"""Which device a computation runs on."""

import torch

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


def float64_place(device: torch.device) -> torch.device:
    """Where float64 is computed for what lies on `device`: there, or on the CPU for mps, which knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device
