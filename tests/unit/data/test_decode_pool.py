"""Processes that decode: the squares of `square`, in order; nothing is left of them however their program ends."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from tests.unit.data.images import encode, random_png

from subspacelab.data import decode_pool
from subspacelab.data.decode_pool import DecodePool, choose_workers
from subspacelab.data.pictures import Picture, square

SIZE = 56


def pictures() -> list[Picture]:
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned
    grey = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    turned = encode(Image.fromarray(np.zeros((8, 20, 3), np.uint8)), "JPEG", exif=exif)
    encoded = [random_png(0), turned, encode(grey, "TIFF"), b"no picture", b"", random_png(1)]
    boxes = [(4.0, 3.0, 20.0, 15.0), (1.0, 2.0, 3.0, 4.0), None, None, None, None]
    return [Picture(f"{i} ü\n", each, box) for i, (each, box) in enumerate(zip(encoded, boxes, strict=True))]


def decoders() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.status() == "zombie" or "decoding.py" in " ".join(p.cmdline())]


def outcome(found: object) -> tuple[object, ...]:
    try:
        one = found()  # type: ignore[operator]
        return one.pixels.tolist(), one.bbox, one.jpeg
    except ValueError as e:
        return (str(e),)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_pool_gives_what_square_gives_in_order(num_workers: int) -> None:
    with DecodePool(num_workers) as pool:
        assert not decoders()  # nothing to do yet
        begun = [pool.begin(picture, SIZE) for picture in pictures() * 2]
        assert len(decoders()) == pool.num_workers == num_workers
        assert [outcome(one) for one in begun] == [outcome(lambda p=p: square(p, SIZE)) for p in pictures()] * 2
        assert torch.equal(begun[0]().pixels, square(pictures()[0], SIZE).pixels)  # as often as it is asked for
        assert pool.seconds > 0
    assert not decoders()


def test_an_interruption_leaves_no_process() -> None:
    large = Picture("large", encode(Image.new("RGB", (3000, 3000)), "PNG"))
    with pytest.raises(KeyboardInterrupt), DecodePool(2) as pool:
        for _ in range(40):
            pool.begin(large, SIZE)
        begin = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 3
    assert not decoders()


def test_the_processes_end_with_a_program_that_is_killed() -> None:
    script = """
import time
import psutil
from subspacelab.data.decode_pool import DecodePool
from subspacelab.data.pictures import Picture
pool = DecodePool(2)
pool.begin(Picture("a", b""), 28)
print(*[p.pid for p in psutil.Process().children()], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_where_no_process_may_start_the_pictures_are_decoded_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("executable", ""), ("executable", None), ("executable", "/bin/false")):
        monkeypatch.setattr(decode_pool.sys, name, value)
        with DecodePool(2) as pool:
            assert torch.equal(pool.begin(pictures()[0], SIZE)().pixels, square(pictures()[0], SIZE).pixels)
            assert pool.num_workers == 0
        said = capsys.readouterr().err
        assert said.startswith("note: no process can be started to decode pictures (")
        assert said.count("\n") == 1
        assert not decoders()


def test_a_process_that_ends_over_a_picture_is_one_line_with_its_name() -> None:
    with DecodePool(1) as pool:
        pool.begin(pictures()[0], SIZE)()
        os.kill(decoders()[0].pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=r"the process that decodes it has ended \(exit code -9\)") as e:
            pool.begin(Picture("a", random_png(0)), SIZE)()
    assert str(e.value).startswith("a: ")


def test_a_core_is_left_to_each_process_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, workers in ((1, 1, 1), (2, 1, 1), (4, 1, 3), (4, 2, 1), (64, 1, 8), (2, 16, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        assert choose_workers(processes) == workers
