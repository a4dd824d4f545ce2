"""Claim: on one thread the sketch by the training pictures' PCA basis, untrained and without power steps, takes at most
3/4 of the time of the exact truncated SVD in float32 (by the eigenvectors of X X^T).

What each method of `lowrank compare` costs a picture: operations by `flops_per_picture`, milliseconds as CPU time of
the one thread (other work on the machine hardly changes it), the least of the repeats, in batches of 16. Methods take
turns. Networks are untrained, which costs the same. With --features: a cache's test pictures, and the mean cosines over
all of them of what needs no training; without it: random pictures at [256, 2048]. Exits with 1 when the claim fails.

    python benchmarks/lowrank_cost.py [--features data/features] [--rank 128] [--repeats 9] [--out FILE.json]
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from subspacelab.core.files import write_json
from subspacelab.linalg.token_svd import project
from subspacelab.lowrank.architectures import ALIASES, ModelSpec, build_model
from subspacelab.lowrank.baselines import (
    PCA_BASIS,
    PCA_SKETCH,
    RANDOM_SKETCH,
    SVD,
    Approximate,
    approximations,
    flops_per_picture,
)
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.metrics import similarity
from subspacelab.lowrank.state import LowRankModel

SEED, BATCH, STEPS, CLAIM = 42, 16, 2, 0.75
FLOAT32, WITHOUT_STEPS = "SVD, float32", "PCA sketch, 0 power steps"


def cached(folder: Path) -> tuple[Tensor, Tensor]:
    """The test pictures of a cache, and the PCA basis of its training pictures."""
    features = Features(folder)
    rows = features.split(SEED)
    train = features.read(rows["train"]).flatten(0, 1).double()
    return features.read(rows["test"]), torch.linalg.eigh(train.T @ train).eigenvectors.flip(1)


def synthetic() -> tuple[Tensor, Tensor]:
    """Random pictures, and a basis that is none of theirs."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(BATCH, 256, 2048, generator=generator)
    return x, torch.linalg.qr(torch.randn(2048, 2048, generator=generator, dtype=torch.float64)).Q


def methods_of(basis: Tensor, tokens: int, rank: int) -> dict[str, tuple[Approximate, int]]:
    """Method to approximation and operations."""
    dim = len(basis)

    def untrained(arch: str, steps: int) -> LowRankModel:
        spec = ModelSpec(arch, tokens, dim, rank, power_steps=steps)
        return LowRankModel(build_model(spec, seed=SEED, basis=basis[:, :rank].float()).eval(), 0, SEED)

    models = {arch: untrained(arch, STEPS) for arch in ALIASES}
    flops, found = flops_per_picture(models, rank, tokens, dim), approximations(models, basis, rank, SEED)
    methods = {name: (found[name], flops[name]) for name in (SVD, *ALIASES, PCA_BASIS, RANDOM_SKETCH)}
    for steps in range(STEPS + 1):
        of_steps = {"Sketch": untrained("Sketch", steps)}
        sketch = approximations(of_steps, basis, rank, SEED)[PCA_SKETCH]
        name = f"{PCA_SKETCH}, {steps} power steps"
        methods[name] = sketch, flops_per_picture(of_steps, rank, tokens, dim)[PCA_SKETCH]
    methods[FLOAT32] = lambda x: project(x, torch.linalg.eigh(x @ x.mT).eigenvectors[..., -rank:]), flops[SVD]
    return methods


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, basis = cached(args.features) if args.features else synthetic()
    tokens, dim = x.shape[1:]
    methods = methods_of(basis, tokens, args.rank)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(args.repeats + 1):
        for name, (approximate, _) in methods.items():
            start = time.process_time()
            approximate(x[:BATCH])
            seconds[name].append(time.process_time() - start)
    figures: dict[str, dict[str, float]] = {}
    for name, (approximate, flops) in methods.items():
        least = min(seconds[name][1:])  # the first warms up
        figures[name] = {"flops": flops, "milliseconds": 1000 * least / len(x[:BATCH])}
        if args.features and name not in {*ALIASES} - {"Sketch"}:
            figures[name]["cosine"] = similarity(x, approximate(x)).cosine.mean().item()
        cosine = f", cosine {figures[name]['cosine']:.4f}" if "cosine" in figures[name] else ""
        print(f"{name}: {flops / 1e6:.1f} MFLOP, {figures[name]['milliseconds']:.2f} ms{cosine}")
    ratio = figures[WITHOUT_STEPS]["milliseconds"] / figures[FLOAT32]["milliseconds"]
    print(f"[{tokens}, {dim}], rank {args.rank} of {min(tokens, dim)}, one thread: {ratio:.2f} (claim {CLAIM})")
    if args.out:
        cpu = torch.backends.cpu.get_cpu_capability()
        setting = {"tokens": tokens, "dim": dim, "rank": args.rank, "threads": 1, "batch": BATCH, "cpu": cpu}
        report = {"command": shlex.join(["python", *sys.argv]), "ratio": ratio, "claim": CLAIM, "methods": figures}
        write_json(args.out, report | setting)
    return int(ratio > CLAIM)


if __name__ == "__main__":
    sys.exit(main())
