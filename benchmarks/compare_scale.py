"""Claim: checkpoints of a 3B's widths are compared from their weights in less time than by way of factors on disk.

Two bf16 checkpoints, or three, with the matrices of a language layer of Qwen2.5-VL-3B (hidden 2048, intermediate 11008,
2 key and value heads of 128), `--layers` of them, each a small random update of the one before. Each way runs in a
process of its own, with the same columns:
- weights: `compare` of the checkpoints; nothing is written.
- factors: `decompose` of each, then `compare` of the folders.
Told of each: seconds, seconds of the CPU, peak of anonymous memory over what was there before the work, as a multiple
of the largest matrix in float64, and bytes of factors. The claim: less CPU time, without a byte of factors, within 4
times that matrix. Of three, the rotations of tall weights are composed from the spaces of their columns.

Seconds of one run are comparable with each other alone; those of the CPU, of one thread, hardly change with what else
runs. Exits with 1 when the claim fails. `--tiny` is a trial of the
script at an eighth of the widths, where only the time of the imports shows; nothing is claimed of it.

    python benchmarks/compare_scale.py [--checkpoints 2] [--layers 1] [--null 1] [--tiny]
        [--out benchmarks/results/compare_scale.json]
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from subspacelab.core.files import write_json
from subspacelab.rotation.comparison import compare
from subspacelab.rotation.decomposition import decompose_into

HIDDEN, INTERMEDIATE, KEYS = 2048, 11008, 256
UPDATE = 1e-3  # of every matrix's norm
WAYS = ("weights", "factors")


def shapes(layers: int, shrink: int) -> dict[str, tuple[int, int]]:
    """Weight to its shape."""
    h, i, k = (size // shrink for size in (HIDDEN, INTERMEDIATE, KEYS))
    attention = {"q_proj": (h, h), "k_proj": (k, h), "v_proj": (k, h), "o_proj": (h, h)}
    mlp = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
    blocks = {f"self_attn.{name}": s for name, s in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}
    return {f"model.layers.{j}.{name}.weight": s for j in range(layers) for name, s in blocks.items()}


def write_checkpoints(folders: Sequence[Path], sizes: dict[str, tuple[int, int]]) -> None:
    """Checkpoints in bf16: spectra that fall tenfold, then random updates."""
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(s, generator=generator) * torch.logspace(0, -1, s[1]) * 0.05 for n, s in sizes.items()}
    for i, folder in enumerate(folders):
        folder.mkdir()
        for w in tensors.values() if i else ():
            noise = torch.randn(w.shape, generator=generator)
            w.add_(noise, alpha=(UPDATE * w.norm() / noise.norm()).item())
        save_file({name: w.bfloat16() for name, w in tensors.items()}, folder / "model.safetensors")


def held() -> int:
    """Bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def watched(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of `work`, and the most memory held during it over what was held before."""
    before = peak = held()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, held())

    thread = threading.Thread(target=watch)
    thread.start()
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    thread.join()
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak - before}


def run_way(way: str, folder: Path, null_draws: int) -> None:
    """Does the work of one way in this process, and prints what it took."""
    torch.set_num_threads(1)
    places = sorted(folder.glob("checkpoint-*"))

    def work() -> None:
        given = places
        if way == "factors":
            given = [decompose_into(place, folder / "svd", device="cpu").folder for place in places]  # type: ignore[arg-type]
        compare(*given, null_draws=null_draws, device="cpu")

    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))  # what the libraries load at first use
    found = watched(work)
    factors = sum(path.stat().st_size for path in (folder / "svd").rglob("*.safetensors"))
    print(json.dumps(found | {"factor_bytes": factors}))


def measure(folder: Path, way: str, null_draws: int) -> dict[str, Any]:
    """`run_way` in a process of its own; what is freed goes back to the system, and is not counted."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--null", str(null_draws)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=2, choices=(2, 3))
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--null", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        run_way(args.way, args.folder, args.null)
        return 0
    sizes = shapes(args.layers, 8 if args.tiny else 1)
    unit = 8 * max(m * n for m, n in sizes.values())
    results: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "largest_float64_bytes": unit}
    with tempfile.TemporaryDirectory() as name:
        write_checkpoints([Path(name) / f"checkpoint-{i}" for i in range(args.checkpoints)], sizes)
        for way in WAYS:
            found = measure(Path(name), way, args.null)
            results[way] = found | {"peak_of_largest": found["peak_bytes"] / unit}
            print(
                f"{way:8s} {found['seconds']:7.1f} s, CPU {found['cpu_seconds']:7.1f} s   "
                f"peak {found['peak_bytes'] / 1e6:7.0f} MB "
                f"({results[way]['peak_of_largest']:.2f} of the largest matrix)   "
                f"factors {found['factor_bytes'] / 1e6:.0f} MB"
            )
    results["ratio"] = results["factors"]["cpu_seconds"] / results["weights"]["cpu_seconds"]
    print(f"from weights: {results['ratio']:.2f} times as fast by CPU seconds")
    if args.out:
        write_json(args.out, results)
    holds = results["ratio"] > 1 and results["weights"]["factor_bytes"] == 0
    return int(not (args.tiny or (holds and results["weights"]["peak_of_largest"] <= 4)))


if __name__ == "__main__":
    sys.exit(main())
