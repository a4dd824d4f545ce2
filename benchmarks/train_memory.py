"""Claim: training on a feature cache of 4 GB keeps at most 1.5 GB resident, the model included.

Writes 4,096 pictures of [256, 2048] in bfloat16 (4.3 GB, one block of random features over and over), trains one epoch
of Sketch at rank 8 by the command line in a child process, and prints the child's largest resident size, mapped
files included. Exits with 1 when the claim fails.

    python benchmarks/train_memory.py [--pictures 4096]      # minutes, 4.3 GB of disk in the temporary folder
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from subspacelab.checkpoints import write_tensors
from subspacelab.core.files import write_json
from subspacelab.lowrank.features import INDEX, META, TENSOR, FeatureMeta, shard_name

TOKENS, DIM, PER_SHARD = 256, 2048, 64
LIMIT_BYTES = 1.5e9


def write_cache(folder: Path, count: int) -> int:
    """The cache on disk; returns its size in bytes."""
    block = torch.randn(PER_SHARD, TOKENS, DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = []
    for number in range(-(-count // PER_SHARD)):
        size = min(PER_SHARD, count - number * PER_SHARD)
        write_tensors(folder / shard_name(number), {TENSOR: block[:size]})
        rows += [{"shard": shard_name(number), "offset": offset} for offset in range(size)]
    index = pd.DataFrame(rows)
    index.insert(0, "row", range(count))
    index["dataset_id"] = index["row"].astype(str)
    index["sha256"] = [f"{row:064x}" for row in range(count)]
    index.to_parquet(folder / INDEX, index=False)
    write_json(folder / META, FeatureMeta("random", None, 448, TOKENS, DIM, "BF16", count, []).as_json())
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="train_memory_") as temporary:
        folder = Path(temporary) / "features"
        folder.mkdir()
        on_disk = write_cache(folder, args.pictures)
        command = [sys.executable, "-m", "subspacelab", "lowrank", "train", "--features", str(folder)]
        command += ["--arch", "Sketch", "--rank", "8", "--power-steps", "0", "--epochs", "1", "--no-track"]
        start = time.monotonic()
        child = subprocess.Popen([*command, "--results-dir", str(folder.parent / "results")], cwd=temporary)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit("the training failed")
    resident, seconds = usage.ru_maxrss * 1024, time.monotonic() - start
    print(
        f"cache of {on_disk / 1e9:.2f} GB: {resident / 1e9:.2f} GB resident at most"
        f" (claim {LIMIT_BYTES / 1e9:.1f}), {seconds:.0f} s"
    )
    if args.out:
        figures = {"on_disk_bytes": on_disk, "resident_bytes": resident, "claim_bytes": LIMIT_BYTES, "seconds": seconds}
        write_json(args.out, {"command": shlex.join(["python", *sys.argv]), **figures})
    return int(resident > LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
