"""Claim: `lowrank cache` takes no longer with a pool of decoding processes than without, and writes the same bytes.

Generated JPEGs of 1600 x 1200 pixels are cached by `cache_features` at 448 pixels: by a tiny vision tower, where
decoding is most of the work, and by one of the 3B's widths (1280, 3420; out 2048) with few blocks, where the tower is.
Serial (`--decode-workers 0`) and pool take turns, the best of `--repeats` counts. With `--processes` the same command
is started by `accelerate launch` too, in 1 and in 2 processes of one thread each, without a pool. The gain that the
cores allow is small where the tower is computed by the same cores: a GPU leaves them free, which this does not show.

    python benchmarks/cache_throughput.py [--tiny] [--pictures 192] [--blocks 2] [--workers 1] [--repeats 3]
        [--processes] [--out FILE.json]
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from subspacelab.core.files import sha256_file, write_json
from subspacelab.lowrank.extraction import CachePlan, Throughput, cache_features
from subspacelab.models.qwen_vl import QwenVLSizes, build_qwen_vl, save_qwen_vl

SLACK = 1.15
"""What a run may take more than another on a machine that others use."""
TOKEN_IDS = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
TINY = QwenVLSizes(32, 2, 2, 48, 64, 1, 2, 64)
WIDE = {"vision_hidden": 1280, "vision_heads": 16, "vision_intermediate": 3420, "hidden": 2048, "depth": 1}


@dataclass(frozen=True)
class Case:
    """One tower and its pictures."""

    name: str
    model: Path
    pictures: int


def main() -> int:
    """Prints pictures per second of every case; 1 if the claim does not hold."""
    args = _parse()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="cache_throughput_") as temporary:
        place = Path(temporary)
        write_pictures(place / "pictures", args.pictures, (160, 120) if args.tiny else (1600, 1200))
        cases = [Case("tiny tower", build(place / "tiny", TINY), args.pictures)]
        if not args.tiny:
            sizes = QwenVLSizes(**WIDE, vision_depth=args.blocks, heads=16, intermediate=64)
            cases.append(Case(f"3B widths, {args.blocks} blocks", build(place / "wide", sizes), args.wide_pictures))
        figures = {case.name: measure(case, place, args.workers, args.repeats) for case in cases}
        processes = {n: launched(cases[0], place, n, args.repeats) for n in (1, 2)} if args.processes else {}
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()))
    if processes:
        print(f"accelerate launch, pictures per second: 1 process {processes[1]:.3g}, 2 processes {processes[2]:.3g}")
    if args.out:
        cpu = {"cores": os.cpu_count(), "threads": args.threads}
        launch = {f"processes_{n}": rate for n, rate in processes.items()}
        write_json(args.out, {"command": shlex.join(["python", *sys.argv]), **cpu, "cases": figures, **launch})
    return int(not args.tiny and any(found["pool_over_serial"] < 1 / SLACK for found in figures.values()))


def measure(case: Case, place: Path, workers: int, repeats: int) -> dict[str, float]:
    """Pictures per second of both ways, the best of some turns; the bytes of all are compared."""
    best: dict[int, Throughput] = {}
    contents = set()
    for _ in range(repeats):
        for count in (0, workers):
            out = place / "out"
            plan = CachePlan(place / "pictures", 448, case.pictures, decode_workers=count)
            found = cache_features(case.model, plan, out, device=torch.device("cpu")).throughput
            assert found is not None
            if count not in best or found.seconds < best[count].seconds:
                best[count] = found
            contents.add(" ".join(sha256_file(file) for file in sorted(out.iterdir())))
            shutil.rmtree(out)
    assert len(contents) == 1, "not the same bytes"
    serial, pool = best[0], best[workers]
    return {
        "serial_per_second": serial.pictures / serial.seconds,
        "pool_per_second": pool.pictures / pool.seconds,
        "pool_over_serial": serial.seconds / pool.seconds,
        "tower_alone_per_second": serial.pictures / serial.tower_seconds,
        "decoding_alone_per_second": serial.pictures / serial.decode_seconds,
        "workers": workers,
    }


def launched(case: Case, place: Path, num_processes: int, repeats: int) -> float:
    """Pictures per second of all processes, the best of some turns; loading is not counted, as in `measure`."""
    command = ["lowrank", "cache", "--no-track", "--device", "cpu", "--decode-workers", "0", "--model-id"]
    command += [str(case.model), "--images", str(place / "pictures"), "--output-dir", str(place / "launched")]
    rates = []
    for _ in range(repeats):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launcher(num_processes), *command], capture_output=True, text=True, env=env, check=True)
        said = re.search(r"^([\d.e+]+) pictures per second", done.stdout, re.MULTILINE)
        assert said, done.stdout
        rates.append(float(said[1]) * num_processes)
        shutil.rmtree(place / "launched")
    return max(rates)


def launcher(num_processes: int) -> list[str]:
    """`subspacelab` by `accelerate launch` on the CPU; its words follow."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*words, "--multi_gpu" if num_processes > 1 else "--cpu", "-m", "subspacelab"]


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of smooth colours with some noise: about as many bytes as a photograph has."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 12, (size[1], size[0], 3))
        buffer = BytesIO()
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(buffer.getvalue())


def build(folder: Path, sizes: QwenVLSizes) -> Path:
    """A random checkpoint."""
    torch.manual_seed(0)
    save_qwen_vl(build_qwen_vl(sizes, vocab_size=64, token_ids=TOKEN_IDS | {"eos_token_id": 0}), folder)
    return folder


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="seconds; small pictures, one tower, no claim")
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--wide-pictures", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=2, help="of the tower of the 3B's widths, which has 32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of the tower")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", action="store_true", help="also by accelerate launch, in 1 and 2 processes")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    if args.tiny:
        args.pictures, args.repeats = 8, 1
    return args


if __name__ == "__main__":
    sys.exit(main())
