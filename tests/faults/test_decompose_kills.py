import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.tiny import write_tiny_qwen_vl

SCRIPT = """
import sys
from pathlib import Path
from subspacelab.checkpoints import resolve_reference
from subspacelab.rotation.decomposition import decompose
decompose(resolve_reference(sys.argv[1]), Path(sys.argv[2]), device="cpu")
"""
# One thread each: the order of float sums, and so the last bits, hang on their number.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
NUM_WEIGHTS = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": torch.randn(320 + i, 256, generator=generator).bfloat16()
        for i in range(NUM_WEIGHTS)
    }
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    return write_tiny_qwen_vl(folder, tensors=tensors, dtype=torch.bfloat16)


def command(checkpoint: Path, out: Path, *launcher: str) -> list[str]:
    script = checkpoint.parent / "run.py"
    script.write_text(SCRIPT)
    return [*(launcher or (sys.executable,)), str(script), str(checkpoint), str(out)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("svd")
    subprocess.run(command(checkpoint, out), check=True, env=ENVIRONMENT)
    return contents(out / "model")


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_bytes(
    checkpoint: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    process = subprocess.Popen(command(checkpoint, tmp_path), env=ENVIRONMENT)
    while process.poll() is None and len(list(folder.glob("*.safetensors"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 3 <= len(kept) < NUM_WEIGHTS
    assert not (folder / "index.json").exists()  # nobody can take the half for the whole
    subprocess.run(command(checkpoint, tmp_path), check=True, env=ENVIRONMENT)
    assert contents(folder) == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(checkpoint: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launcher += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    launcher += ("--main_process_port", "0")
    subprocess.run(command(checkpoint, tmp_path, *launcher), check=True, env=ENVIRONMENT)
    assert contents(tmp_path / "model") == expected


@pytest.mark.slow
def test_of_two_commands_at_once_one_is_refused_and_the_other_undisturbed(
    checkpoint: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    first = subprocess.Popen(command(checkpoint, tmp_path), env=ENVIRONMENT)
    while first.poll() is None and not list((tmp_path / "model").glob("*.safetensors")):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # so that it is still at work when the second has started
    second = subprocess.run(command(checkpoint, tmp_path), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"another command is writing there (process {first.pid})" in second.stderr
    assert first.wait() == 0
    assert contents(tmp_path / "model") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
