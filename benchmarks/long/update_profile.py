"""What of an update is more than the sizes of its entries? Beside random signs. `make bench` leaves it out.

For each weight of a decomposed chain, of the update D from the first checkpoint to the last:
- energy in the leading frame, over a random update's, beside its mean over updates of D's absolute entries with random
  signs (exact: sum_ij D_ij^2 |U_i|^2 |V_j|^2 for the rows U_i, V_j of the leading bases), and over Gaussian updates
  with D's row and column norms (exact: the product of sum_i r_i^2 |U_i|^2 and sum_j c_j^2 |V_j|^2);
- stable rank, beside the mean of `--draws` updates with random signs.

    python benchmarks/long/update_profile.py --out docs/results/update_profile.csv [--base data/svd/base]
        [--stage1 data/svd/rl_stage1] [--stage2 data/svd/rl_stage2] [--draws 4]
"""

import argparse
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from subspacelab.core.files import write_csv
from subspacelab.linalg.svd import stable_rank
from subspacelab.linalg.updates import principal_energy
from subspacelab.rotation.chain import open_chain
from subspacelab.rotation.metrics import LARGEST_DEFAULT_K, generator_for
from subspacelab.rotation.weight import subtract


def expected_energies(delta: Float[Tensor, "m n"], u: Float[Tensor, "m k"], v: Float[Tensor, "n k"]) -> list[float]:
    """Mean `principal_energy` over random signs of the entries, and over Gaussians of equal row and column norms."""
    squares, rows, columns = delta.square(), u.square().sum(dim=1), v.square().sum(dim=1)
    share = 1 / squares.sum() * delta.numel() / u.shape[1] ** 2
    signs = rows @ squares @ columns
    profile = (rows @ squares.sum(dim=1)) * (columns @ squares.sum(dim=0)) / squares.sum()
    return [(signs * share).item(), (profile * share).item()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for role, folder in (("base", "base"), ("stage1", "rl_stage1"), ("stage2", "rl_stage2")):
        parser.add_argument(f"--{role}", type=Path, default=Path("data/svd") / folder)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True, help="a CSV file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chain = open_chain(args.base, args.stage1, args.stage2)
    rows = []
    for name in chain.names:
        first, _, last = chain.read(name, torch.device("cpu"))
        delta = subtract(last, first).double()
        k = min(len(first.svd.S), LARGEST_DEFAULT_K)
        u, v = first.svd.U[:, :k].double(), first.svd.Vh[:k].double().T
        signs, profile = expected_energies(delta, u, v)
        generator = generator_for(0, name, "signs")
        flips = (torch.randn(delta.shape, dtype=torch.float64, generator=generator).sign() for _ in range(args.draws))
        rows.append(
            {"weight": name, "energy": principal_energy(delta, u, v), "energy_signs": signs, "energy_profile": profile}
            | {"stable_rank": stable_rank(delta), "stable_rank_signs": fmean(stable_rank(delta * f) for f in flips)}
        )
    table = pd.DataFrame(rows)
    print(table.drop(columns="weight").describe().round(3).to_string())
    write_csv(args.out, table)


if __name__ == "__main__":
    main()
