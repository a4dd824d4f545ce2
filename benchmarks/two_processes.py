"""Claim: two processes take at most 1 / 1.7 of the time of one for `decompose`, `compare` and `cache`.

Runs the commands on random weights and generated pictures by `accelerate launch`, in one process and in two of one
thread each, in turns. What is compared is the time from the moment both processes have imported what they need to the
end, taken as the wall time less that of the same launch on almost nothing; the wall times stand beside it. It wants
two cores that nothing else uses: on a machine at work the ratio says what was left over.

    python benchmarks/two_processes.py [--matrices 16] [--width 2048] [--pictures 512] [--tiny] [--out FILE.json]
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from subspacelab.core.files import write_json

LEAST = 1.7
UPDATE = 1e-3  # of a matrix's norm
cached: Any = import_module("cache_throughput")  # the benchmark beside this one


def main() -> int:
    """Prints the speed-up of each command; 1 if the claim does not hold."""
    args = _parse()
    with tempfile.TemporaryDirectory(prefix="two_processes_") as temporary:
        place = Path(temporary)
        write_weights(place / "few", 2, 64)
        write_weights(place / "many", args.matrices, args.width)
        model = cached.build(place / "model", cached.TINY)
        cached.write_pictures(place / "few" / "pictures", 2, (160, 120))
        cached.write_pictures(place / "many" / "pictures", args.pictures, (160, 120) if args.tiny else (1600, 1200))
        figures: dict[str, dict[str, Any]] = {}
        for name in ("decompose", "compare", "cache"):
            few, many = (command(name, place / size, model) for size in ("few", "many"))
            seconds = {n: (seconds_of(few, n, place / "out"), seconds_of(many, n, place / "out")) for n in (1, 2)}
            one, two = (whole - start for start, whole in seconds.values())
            figures[name] = {
                "speed_up": one / two,
                "wall_seconds": {n: whole for n, (_, whole) in seconds.items()},
                "start_seconds": {n: start for n, (start, _) in seconds.items()},
            }
            print(f"{name}: {one / two:.2f} times as fast; wall {seconds[1][1]:.1f} s and {seconds[2][1]:.1f} s")
    if args.out:
        machine = {"cores": os.cpu_count(), "load_at_end": os.getloadavg()[0]}
        write_json(args.out, {"command": shlex.join(["python", *sys.argv]), **machine, **figures})
    return int(not args.tiny and min(found["speed_up"] for found in figures.values()) < LEAST)


def write_weights(folder: Path, matrices: int, width: int) -> None:
    """`base` and `tuned` of square matrices, the second a small random update of the first."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(width, width, generator=generator) for i in range(matrices)}
    tuned = {name: w + UPDATE * torch.randn(w.shape, generator=generator) for name, w in base.items()}
    for label, tensors in {"base": base, "tuned": tuned}.items():
        (folder / label).mkdir(parents=True)
        save_file(tensors, folder / label / "model.safetensors")


def command(name: str, given: Path, model: Path) -> list[str]:
    """The words after `subspacelab`, but for --output-dir."""
    words = {
        "decompose": ["rotation", "decompose", "--model-id", str(given / "base")],
        "compare": ["rotation", "compare", str(given / "base"), str(given / "tuned"), "--null", "1"],
        "cache": ["lowrank", "cache", "--model-id", str(model), "--images", str(given / "pictures")]
        + ["--decode-workers", "0"],
    }
    return [*words[name], "--device", "cpu", "--no-track"]


def seconds_of(words: list[str], num_processes: int, out: Path) -> float:
    """Wall time of a launch in that many processes of one thread each."""
    start = time.perf_counter()
    done = subprocess.run(
        [*cached.launcher(num_processes), *words, "--output-dir", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{shlex.join(words)}: {done.stderr}")
    shutil.rmtree(out)
    return seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--pictures", type=int, default=512, help="a process takes 64 at a time")
    parser.add_argument("--tiny", action="store_true", help="a trial of the script; no claim")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    if args.tiny:
        args.matrices, args.width, args.pictures = 4, 96, 8
    return args


if __name__ == "__main__":
    sys.exit(main())
