"""The table of `lowrank compare` over seeds and ranks on one feature cache, as a CSV; `make bench` leaves it out.

For every seed (of weights, order, dropout, and of the split) and rank: the four trainings of the default study, then
the comparison. A quarter of an hour on two quiet cores; what was trained before in --work is taken up. --archs Sketch
takes two minutes.

    python benchmarks/long/lowrank_seeds.py --out docs/results/lowrank_seeds.csv [--features data/features]
        [--archs ResMLP,MLP,AdaLoRA,Sketch] [--seeds 42,43,44] [--ranks 128,64] [--epochs 4] [--threads 2] [--work DIR]
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from subspacelab.core.files import write_csv
from subspacelab.lowrank.architectures import ALIASES
from subspacelab.lowrank.comparison import MEASURES, compare
from subspacelab.lowrank.config import TrainLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.training import train_into


def rows_of(features: Features, work: Path, archs: list[str], rank: int, seed: int, epochs: int) -> pd.DataFrame:
    """One row per method: the means over the test pictures, and of networks what training changed."""
    results = work / f"rank-{rank}-seed-{seed}"
    for arch in archs:
        settings = TrainLowrankConfig(epochs=epochs, device="cpu")
        train_into(features, results, arch=arch, rank=rank, seed=seed, settings=settings)
    metrics = compare(features, results, archs=archs, rank=rank).metrics
    common = {"rank": rank, "full_rank": metrics["full_rank"], "seed": seed, "num_images": metrics["num_images"]}
    rows = []
    for method, measures in metrics["methods"].items():
        means = {m: measures[m]["mean"] for m in MEASURES if m in measures}
        rows.append(common | {"method": method} | means | metrics["training"].get(method, {}))
    return pd.DataFrame(rows)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=Path, default=Path("data/features"))
    parser.add_argument("--archs", type=lambda text: text.split(","), default=list(ALIASES))
    parser.add_argument("--seeds", type=numbers, default=[42, 43, 44])
    parser.add_argument("--ranks", type=numbers, default=[128, 64])
    parser.add_argument("--epochs", type=int, default=4, help="as in the default study")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("results/lowrank-seeds"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features, found = Features(args.features), []
    for rank in args.ranks:
        for seed in args.seeds:
            found.append(rows_of(features, args.work, args.archs, rank, seed, args.epochs))
            write_csv(args.out, pd.concat(found).astype({"best_epoch": "Int64"}))


if __name__ == "__main__":
    main()
