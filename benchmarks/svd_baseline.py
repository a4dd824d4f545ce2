"""Claim: the exact SVD baseline of a batch is at least 2.5 times faster by its token Gram matrices than by a loop of
`torch.linalg.svd` (10 times on a GPU), at [256, 2048], and its cosines are equal to 1e-7.

Both give the cosine of every picture at rank 128: ours from `token_svd` in float64, the loop from the reconstruction
U_r S_r V_r^T in float32, as one writes it first. Its cosine is taken in float64; the reference for both errors is
numpy's float64 SVD. Both take turns; medians are compared. Exits with 1 when the claim fails.

    python benchmarks/svd_baseline.py [--device cuda] [--threads 2] [--pictures 16] [--repeats 3] [--out FILE.json]
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from subspacelab.core.files import write_json
from subspacelab.linalg.token_svd import token_svd
from subspacelab.lowrank.metrics import similarity

TOKENS, DIM, RANK = 256, 2048, 128
SPEED_CLAIM = {"cpu": 2.5, "cuda": 10.0}
COSINE_CLAIM = 1e-7


def features(count: int, device: str) -> Tensor:
    """Random pictures whose singular values decay as (4 + j)^-1."""
    generator = torch.Generator().manual_seed(0)
    decay = 1 / (4 + torch.arange(TOKENS))
    basis = torch.linalg.qr(torch.randn(DIM, TOKENS, generator=generator)).Q
    x = torch.randn(count, TOKENS, TOKENS, generator=generator).mul_(decay) @ basis.T
    return x.to(device)


def ours(x: Tensor) -> Tensor:
    return token_svd(x).cosines()[:, RANK - 1]


def loop(x: Tensor) -> Tensor:
    found = []
    for one in x:
        u, s, vh = torch.linalg.svd(one, full_matrices=False)
        best = u[:, :RANK] * s[:RANK] @ vh[:RANK]
        found.append(similarity(one[None], best[None]).cosine)
    return torch.cat(found)


def seconds_of(method: object, x: Tensor) -> float:
    start = time.perf_counter()
    method(x)  # type: ignore[operator]
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=list(SPEED_CLAIM))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = features(args.pictures, args.device)
    methods = {"ours": ours, "loop": loop}
    for method in methods.values():
        method(x[:2])  # loads the libraries
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(args.repeats):
        for name, method in methods.items():
            seconds[name].append(seconds_of(method, x))
    squares = np.linalg.svd(x.double().cpu().numpy(), compute_uv=False) ** 2
    exact = torch.from_numpy(np.sqrt(squares[:, :RANK].sum(1) / squares.sum(1)))
    errors = {name: (method(x).cpu() - exact).abs().max().item() for name, method in methods.items()}
    each = {name: statistics.median(values) / len(x) * 1000 for name, values in seconds.items()}
    ratio = each["loop"] / each["ours"]
    chip = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(
        f"[{TOKENS}, {DIM}], rank {RANK}, {chip}: ours {each['ours']:.1f} ms a picture, loop {each['loop']:.1f} ms:"
        f" {ratio:.2f} times (claim {SPEED_CLAIM[args.device]}); largest error of a cosine: ours {errors['ours']:.1e},"
        f" loop {errors['loop']:.1e} (claim {COSINE_CLAIM:.0e})"
    )
    if args.out:
        figures = {"milliseconds": each, "ratio": ratio, "claim": SPEED_CLAIM[args.device], "errors": errors}
        cpu = torch.backends.cpu.get_cpu_capability()
        write_json(args.out, {"command": shlex.join(["python", *sys.argv]), "cpu": cpu, **figures})
    return int(ratio < SPEED_CLAIM[args.device] or max(errors.values()) > COSINE_CLAIM)


if __name__ == "__main__":
    sys.exit(main())
