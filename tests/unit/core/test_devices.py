"""Which device is chosen, and where float64 is computed."""

import pytest
import torch

from subspacelab.core.devices import choose_device, float64_place, solve


def test_auto_is_a_device_that_is_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert float(torch.ones(2, device=choose_device("auto")).sum()) == 2


def test_a_device_that_is_unknown_or_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='tpu': allowed are auto, cpu, cuda, mps"):
        choose_device("tpu")
    with pytest.raises(ValueError, match="device='cuda': not available on this machine; use auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("device", "place"), [("mps", "cpu"), ("cpu", "cpu"), ("cuda:1", "cuda:1")])
def test_float64_is_computed_where_the_tensor_lies_unless_that_is_mps(device: str, place: str) -> None:
    assert float64_place(torch.device(device)) == torch.device(place)


def test_a_solve_without_room_on_the_gpu_is_done_on_the_cpu_and_said_in_one_line(
    capsys: pytest.CaptureFixture,
) -> None:
    calls = []

    def solver(*matrices: torch.Tensor) -> float:
        calls.append(matrices)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nwith a second line")
        return sum(m.sum().item() for m in matrices)

    assert solve(solver, torch.ones(2, 3), torch.ones(4)) == 10
    assert [m.device.type for m in calls[1]] == ["cpu", "cpu"]
    said = capsys.readouterr().err
    assert said == "note: too little GPU memory to solve for [2, 3] and [4]; computed on the CPU\n"
