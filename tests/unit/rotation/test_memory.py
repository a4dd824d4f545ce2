"""Two checkpoints are compared within 4 times their largest matrix in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

M, N = 20000, 384
CHILD = """
import sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from subspacelab.checkpoints import validation
from subspacelab.linalg import moments
from subspacelab.rotation.comparison import compare
moments.CHUNK_ENTRIES = validation.CHUNK_ENTRIES = 1 << 16  # what is small beside an embedding of gigabytes, here too

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, held())
        time.sleep(0.002)

compare(*sys.argv[1:], include="small", null_draws=1)
before = peak = held()
done = threading.Event()
thread = threading.Thread(target=watch)
thread.start()
compare(*sys.argv[1:], include="embed", null_draws=1, k=32)
done.set()
thread.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_two_checkpoints_take_four_times_the_largest_matrix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(M, N, generator=generator)
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        small = torch.randn(80, 70, generator=generator)
        tensors = {"embed.weight": (w + 0.01 * i * torch.randn(M, N, generator=generator)).bfloat16(), "small": small}
        save_file(tensors, tmp_path / str(i) / "model.safetensors")
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / str(i)) for i in range(2))]
    # So that whatever is freed goes back to the system, and is not counted.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * M * N * 8
