"""Two processes train one network as one process does, and cache the features of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.lowrank.caches import write_random_cache
from tests.lowrank.trainings import contents
from tests.tiny import write_tiny_qwen_vl

from subspacelab.cli import main
from subspacelab.files import read_json

pytestmark = pytest.mark.slow

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHER += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
COMMON = ["--no-track", "--device", "cpu"]
# A budget that falls from step 3 to 12 of 15, so that the processes must agree on what to mask.
ALLOCATOR = ["--use-rank-allocator", "--allocator-init-warmup", "2", "--allocator-final-warmup", "3"]
ALLOCATOR += ["--allocator-mask-interval", "1", "--allocator-keep-ratio", "0.5"]


def in_one(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["lowrank", *arguments, *COMMON])
    assert not e.value.code


def in_two(arguments: list[str], cwd: Path) -> str:
    command = [*LAUNCHER, "-m", "subspacelab", "lowrank", *arguments, *COMMON]
    done = subprocess.run(command, cwd=cwd, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(contents(folder))


def test_two_processes_train_what_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_random_cache(tmp_path / "features")
    arguments = ["train", "--features", str(tmp_path / "features"), "--arch", "AdaLoRA", "--rank", "4", *ALLOCATOR]
    arguments += ["--batch-size", "4", "--epochs", "3", "--dropout", "0", "--lr", "1e-3"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    in_one(arguments)
    said = in_two(arguments, tmp_path / "two")
    one, two = (read_json(tmp_path / name / "results" / "AdaLoRA" / "history.json") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    assert two[-1]["live_rank"] == 2
    for a, b in zip(one, two, strict=True):
        # Float32 sums of halves round otherwise, and AdamW makes a whole step of a gradient near 0 whose sign flips.
        assert b == pytest.approx(a, rel=2e-3)
    assert names(tmp_path / "two" / "results") == names(tmp_path / "one" / "results")
    assert len(list((tmp_path / "two" / "log").iterdir())) == 1
    assert said.count("best epoch") == capsys.readouterr().out.count("best epoch") == 1  # one process speaks


def test_two_processes_cache_the_bytes_of_one(tmp_path: Path) -> None:
    checkpoint = write_tiny_qwen_vl(tmp_path / "tiny")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(70):  # two shards
        pixels = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:03d}.png")
    arguments = ["cache", "--model-id", str(checkpoint), "--images", str(tmp_path / "pictures"), "--image-size", "56"]
    in_one([*arguments, "--output-dir", str(tmp_path / "one")])
    in_two([*arguments, "--output-dir", str(tmp_path / "two")], tmp_path)
    assert sum(name.endswith(".safetensors") for name in names(tmp_path / "one")) == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
