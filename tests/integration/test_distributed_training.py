"""Two processes train one network as one process does, and cache the features of one.

They are launched once for both commands: their imports take longer than the work.
"""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import contents

from subspacelab.cli import main
from subspacelab.core.files import read_json

pytestmark = pytest.mark.slow

LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHER += ["--num_machines", "1", "--main_process_port", "0"]
OUTSIDE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
downcast_bf16: 'yes'
dynamo_config: {dynamo_backend: INDUCTOR}
mixed_precision: fp16
num_machines: 1
num_processes: 2
use_cpu: false
"""
"""What `accelerate config` may have left on a machine: none of it is for these commands."""
COMMON = ["--no-track", "--device", "cpu"]
# A budget that falls from step 3 to 12 of 15, so that the processes must agree on what to mask.
ALLOCATOR = ["--use-rank-allocator", "--allocator-init-warmup", "2", "--allocator-final-warmup", "3"]
ALLOCATOR += ["--allocator-mask-interval", "1", "--allocator-keep-ratio", "0.5"]


def in_one(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["lowrank", *arguments, *COMMON])
    assert not e.value.code


def in_two(*commands: list[str], cwd: Path) -> str:
    script = cwd / "commands.py"
    lines = [["lowrank", *arguments, *COMMON] for arguments in commands]
    outside = cwd / "hf" / "accelerate" / "default_config.yaml"
    outside.parent.mkdir(parents=True)
    outside.write_text(OUTSIDE)
    body = "import os\nassert os.environ['ACCELERATE_MIXED_PRECISION'] == 'fp16'\n"
    body += "assert os.environ['ACCELERATE_DYNAMO_BACKEND'] == 'INDUCTOR'\n"
    body += "from subspacelab.cli import main\nfor line in {!r}:\n    try:\n        main(line)\n"
    script.write_text(f"{body.format(lines)}    except SystemExit as e:\n        assert not e.code\n")
    command = [*LAUNCHER, str(script)]
    env = os.environ | {"HF_HOME": str(cwd / "hf")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(contents(folder))


@dataclass(frozen=True)
class Done:
    place: Path
    """Holds `one` and `two`, the folders in which one process and two have worked."""
    said: str
    """By the one."""
    said_by_two: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    place = tmp_path_factory.mktemp("processes")
    write_random_cache(place / "features")
    checkpoint = write_tiny_qwen_vl(place / "tiny")
    (place / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(70):  # two shards
        pixels = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{i:03d}.png")
    train = ["train", "--features", str(place / "features"), "--arch", "AdaLoRA", "--rank", "4", *ALLOCATOR]
    train += ["--batch-size", "4", "--epochs", "3", "--dropout", "0", "--lr", "1e-3"]
    cache = ["cache", "--model-id", str(checkpoint), "--images", str(place / "pictures"), "--image-size", "56"]
    cache += ["--output-dir", "cached"]
    for name in ("one", "two"):
        (place / name).mkdir()
    said = io.StringIO()
    with chdir(place / "one"), redirect_stdout(said):
        in_one(train)
        in_one(cache)
    return Done(place, said.getvalue(), in_two(train, [*cache, "--decode-workers", "1"], cwd=place / "two"))


def test_two_processes_train_what_one_trains(done: Done) -> None:
    """Whatever `accelerate config` says of precision and compiling."""
    one, two = (read_json(done.place / name / "results" / "AdaLoRA" / "history.json") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    assert two[-1]["live_rank"] == 2
    for a, b in zip(one, two, strict=True):
        # Float32 sums of halves round otherwise, and AdamW makes a whole step of a gradient near 0 whose sign flips.
        assert b == pytest.approx(a, rel=2e-3)
    assert names(done.place / "two" / "results") == names(done.place / "one" / "results")
    assert len(list((done.place / "two" / "log").iterdir())) == 1
    assert done.said_by_two.count("best epoch") == done.said.count("best epoch") == 1  # one process speaks


def test_two_processes_cache_the_bytes_of_one(done: Done) -> None:
    one, two = (done.place / name / "cached" for name in ("one", "two"))
    assert sum(name.endswith(".safetensors") for name in names(one)) == 2
    assert contents(two) == contents(one)
    assert "pictures per second in each of 2 processes, " in done.said_by_two
