"""Claims: the spectrum of an adapter's update without a full SVD, and an update extracted faster than by one.

- audit: singular values of D = B A, [2048, 2048] of rank 64, from the QR of the factors (`linalg.updates.product_svd`,
  float64) against the full `torch.linalg.svd` of the product, which PEFT's conversion of adapters to LoRA takes
  (peft/tuners/lora/conversion.py). At least 50 times faster, and the same singular values to 1e-6 of the largest.
- extract: the leading terms of dense updates from `linalg.svd` (Gram matrix, `eigh`), as `rotation extract` takes them,
  against a loop of `torch.linalg.svd` in float32, the idea of mergekit's extract_lora. The same norms, to 1e-5; no
  slower.

Both ways run side by side, and CPU time is compared. Exits with 1 when a claim fails. Under a
minute on 2 quiet cores.

    python benchmarks/audit.py [--size 2048] [--rank 64] [--out benchmarks/results/audit.json]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.core.files import write_json
from subspacelab.linalg.update_parts import UpdateParts
from subspacelab.linalg.updates import product_svd

CLAIM, PRECISION, NORMS = 50, 1e-6, 1e-5


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Mean CPU time of `repeats` runs, over all threads, and what the last gave: others at work change it little."""
    start, found = time.process_time(), None
    for _ in range(repeats):
        found = work()
    return (time.process_time() - start) / repeats, found


def audit(size: int, rank: int, generator: torch.Generator) -> dict[str, float]:
    """Times and singular values of both ways, for factors as trainings leave them: of falling spectrum."""
    up = torch.randn(size, rank, generator=generator) * torch.logspace(0, -3, rank)
    down = torch.randn(rank, size, generator=generator) / size**0.5
    full, (_, values, _) = seconds(lambda: torch.linalg.svd(up @ down, full_matrices=False), 1)
    ours, update = seconds(lambda: product_svd(up, down), 5)
    exact = torch.linalg.svdvals(torch.linalg.qr(up.double()).R @ torch.linalg.qr(down.double().T).R.T)
    difference = (update.S - values[:rank].double()).abs().max() / update.S[0]
    return {
        "full_svd_seconds": full,
        "qr_seconds": ours,
        "ratio": full / ours,
        "difference": difference.item(),
        "full_svd_error": ((values[:rank].double() - exact).abs().max() / exact[0]).item(),
        "qr_error": ((update.S - exact).abs().max() / exact[0]).item(),
    }


def extract(shapes: list[tuple[int, int]], rank: int, generator: torch.Generator) -> dict[str, float]:
    """Times and kept norms of both ways over dense updates."""
    pairs = [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for shape in shapes]

    def loop() -> Tensor:
        svds = (torch.linalg.svd(1e-3 * (after - before), full_matrices=False) for before, after in pairs)
        return torch.stack([s[:rank].norm() for _, s, _ in svds])

    def ours() -> Tensor:
        updates = (UpdateParts(1e-3 * before, 1e-3 * after) for before, after in pairs)
        return torch.stack([update.factors.S[:rank].norm() for update in updates])

    (theirs, wanted), (mine, found) = seconds(loop, 1), seconds(ours, 1)
    difference = ((found - wanted).abs() / wanted).max().item()
    return {"loop_seconds": theirs, "seconds": mine, "ratio": theirs / mine, "difference": difference}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    size = args.size
    found = {
        "settings": {"size": size, "rank": args.rank, "threads": args.threads},
        "audit": audit(size, args.rank, generator),
        "extract": extract([(size, size), (size // 2, 2 * size)], args.rank, generator),
    }
    a, e = found["audit"], found["extract"]
    print(
        f"audit, {size} x {size} of rank {args.rank}, CPU seconds: full SVD {a['full_svd_seconds']:.2f}, QR "
        f"{a['qr_seconds']:.4f}, {a['ratio']:.0f} times (claim {CLAIM}); singular values differ by "
        f"{a['difference']:.1e} (claim {PRECISION:.0e}), from exact ones by {a['full_svd_error']:.1e} and "
        f"{a['qr_error']:.1e}"
    )
    print(
        f"extract, 2 dense updates, CPU seconds: a loop of full SVDs {e['loop_seconds']:.2f}, ours {e['seconds']:.2f}, "
        f"{e['ratio']:.2f} times; norms differ by {e['difference']:.1e}"
    )
    if args.out:
        write_json(args.out, found)
    holds = a["ratio"] >= CLAIM and a["difference"] <= PRECISION and e["ratio"] >= 1 and e["difference"] <= NORMS
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
