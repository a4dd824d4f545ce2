"""Claim: to rotation's null model random updates look random at the rate that it tells, and planted ones stand out.

Matrices of 48 x 32 with a decaying spectrum, norm 1, and two updates of norm 0.05 each; leading frame k = 8.
- random: both updates Gaussian. |z| > 3 and > 5 come about as often as `false_alarm_rate` says (Student's t, for
  energy and cosine the normal distribution), for 3, 10 and 20 draws; within 4 standard errors for as many independent
  weights as there are. Angles and composition errors are skewed (a narrow gap now and then turns a direction far), so
  they exceed these rates; of them at most 2 % stand out, by z and ratio, from 10 draws on.
- leading: both updates within the span of the leading k directions of both sides. z of the energy is above 5.
- trailing: both updates off these directions. z of the energy is below -5.
- rotation: the leading directions, 5 times the others, turned by 0.05 towards trailing ones. z of their mean angle is
  above 5.
- spectrum, permuted: to these two null models, updates that are drawn from them look random at the rates that are told,
  in the measures that are not skewed.

`--base` takes the weights of a decomposed folder in place of the made ones for `random`, with k = 64 and 10 draws: the
rates by which to read a report on it. Exits with 1 when the claim fails. Under two minutes.

    python benchmarks/null_models.py [--weights 200] [--base data/svd/base] [--out benchmarks/results/null_models.json]
"""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subspacelab.core.files import write_json
from subspacelab.linalg.svd import svd
from subspacelab.rotation.factors import read_decomposition
from subspacelab.rotation.metrics import LARGEST_DEFAULT_K, measure_weight
from subspacelab.rotation.null_model import false_alarm_rate, null_columns, stands_out
from subspacelab.rotation.random_updates import MODELS, Model, RealUpdate, gaussian_update
from subspacelab.rotation.weight import Weight

M, N, K, NORM = 48, 32, 8, 0.05
DRAWS = (3, 10, 20)
EXACT = ("principal_energy", "cosine")
SKEWED = ("angle_mean", "rotation_mse", "rotation_rel")
FAMILIES = (*SKEWED, "nss", "update_stable_rank", *EXACT)
LIMITS = (3.0, 5.0)
TURN = 0.05
PLANTED = (("leading", "principal_energy", 1), ("trailing", "principal_energy", -1), ("rotation", "angle_mean", 1))
Chain = tuple[Weight, Weight, Weight]


def base(generator: torch.Generator) -> Tensor:
    """Norm 1, singular values that fall to a third of a Gaussian matrix's."""
    u, s, vh = torch.linalg.svd(torch.randn(M, N, generator=generator, dtype=torch.float64), full_matrices=False)
    w = u * (s * torch.linspace(1, 0.3, N)) @ vh
    return w / w.norm()


def chain(case: str, seed: int, w: Tensor | None = None) -> Chain:
    """W_0 (`w`, or a made one) and two updates: random, projected on, or off, the leading frame of W_0, or its turn."""
    generator = torch.Generator().manual_seed(seed)
    w = base(generator) if w is None else w
    if case == "rotation":
        return turned_chain(w)
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    directions = {"leading": slice(0, K), "trailing": slice(K, None)}.get(case)
    weights, norm = [w], NORM * w.norm().item()
    for _ in range(2):
        update = gaussian_update(w.shape, norm, generator)
        update = redrawn(case, update, generator)
        if directions is not None:
            left, right = u[:, directions], vh[directions].T
            update = left @ (left.T @ update @ right) @ right.T
            update *= norm / update.norm()
        weights.append(weights[-1] + update)
    first, second, third = (Weight(svd(w.float()), w.float()) for w in weights)
    return first, second, third


def redrawn(case: str, update: Tensor, generator: torch.Generator) -> Tensor:
    """Of the cases of null models a draw like a fifth of the entries of `update`, else `update`."""
    model = next((model for model in MODELS[1:] if model == case), None)
    if model is None:
        return update
    sparse = torch.where(torch.rand(update.shape, generator=generator) < 0.2, update, 0)
    real = RealUpdate(tuple(update.shape), sparse.norm().item(), update.device, lambda: sparse)
    return real.draw(model, generator)


def turned_chain(w: Tensor) -> Chain:
    """W with leading directions 5 times as strong, and these turned, once and twice."""
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    s[:K] *= 5
    weights = []
    for angle in (0.0, TURN, 2 * TURN):
        left, right = turned(u, angle), turned(vh.T, angle)
        weights.append((left * s) @ right.T)
    first, second, third = (Weight(svd(w.float()), w.float()) for w in weights)
    return first, second, third


def turned(q: Tensor, angle: float) -> Tensor:
    """The basis with its first K directions turned towards the last K."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.cat([cos * q[:, :K] + sin * q[:, -K:], q[:, K:-K], cos * q[:, -K:] - sin * q[:, :K]], dim=1)


def expected_rates(family: str, draws: int, model: str) -> list[float]:
    """How often |z| exceeds each limit by chance; the energy of shuffled entries is drawn, not exact."""
    if family in EXACT and model != "permuted":
        return [math.erfc(limit / math.sqrt(2)) for limit in LIMITS]
    return [false_alarm_rate(limit, draws) for limit in LIMITS]


def measure(case: str, chains: Iterable[Chain], draws: int, k: int = K) -> dict[str, list[dict[str, float]]]:
    """Value, null mean and z of every column with a null model, by family."""
    found: dict[str, list[dict[str, float]]] = {family: [] for family in FAMILIES}
    for seed, weight in enumerate(chains):
        row = measure_weight(f"{case}{seed}", weight, k=k, seed=seed)
        model: Model = next((model for model in MODELS if model == case), "gaussian")
        for column, null in null_columns(f"{case}{seed}", weight, row, seed=seed, draws=draws, model=model).items():
            family = next((family for family in FAMILIES if column.startswith(family)), None)
            value = row[column]
            if family and isinstance(value, float) and (z := null.z(value)) is not None:
                found[family].append(
                    {"value": value, "null_mean": null.mean, "z": z, "out": stands_out(column, value, null)}
                )
    return found


def rates_of(
    measured: dict[str, list[dict[str, float]]], weights: int, draws: int, model: Model = "gaussian"
) -> tuple[dict[str, Any], bool]:
    """Rates of |z| > 3 and > 5 of random updates beside those that are told, and whether the claim holds of them."""
    results: dict[str, Any] = {}
    holds = True
    for family, entries in measured.items():
        if not entries:
            continue
        told = expected_rates(family, draws, model)
        rates = [sum(abs(e["z"]) > limit for e in entries) / len(entries) for limit in LIMITS]
        out = sum(e["out"] for e in entries) / len(entries)
        allowed = [4 * max(math.sqrt(rate * (1 - rate) / weights), 1 / weights) for rate in told]
        as_told = all(abs(r - e) <= a for r, e, a in zip(rates, told, allowed, strict=True))
        good = (draws < 10 or out <= 0.02) if family in SKEWED else as_told
        holds &= good
        total = sum(e["null_mean"] for e in entries)
        ratio = sum(e["value"] for e in entries) / total if total else None
        print(
            f"{draws:3d} draws  {family:20s} {len(entries):5d} z   |z| > 3: {rates[0]:.4f} (told {told[0]:.4f})   > 5: "
            f"{rates[1]:.4f} ({told[1]:.4f})   stand out {out:.4f}   ratio {ratio or math.nan:.3f}"
            f"{'' if good else '   FAILS'}"
        )
        results[family] = {"count": len(entries), "beyond_3": rates[0], "told_3": told[0]}
        results[family] |= {"beyond_5": rates[1], "told_5": told[1], "standing_out": out, "ratio": ratio}
    return results, holds


def weights_of(folder: Path) -> list[Tensor]:
    """The full weights of a decomposed folder, from their factors."""
    decomposition = read_decomposition(folder)
    factors = (decomposition.read(name) for name, record in sorted(decomposition.weights.items()) if record.is_full)
    return [(f.U.double() * f.S.double()) @ f.Vh.double() for f in factors]


def check_planted(case: str, family: str, sign: int, weights: int) -> tuple[dict[str, float], bool]:
    """The z of the measure by which a planted update is to be seen."""
    entries = measure(case, (chain(case, seed) for seed in range(weights)), 10)[family]
    signed = [sign * entry["z"] for entry in entries]
    found = {
        "count": len(entries),
        "beyond_3": sum(z > LIMITS[0] for z in signed) / len(signed),
        "beyond_5": sum(z > LIMITS[1] for z in signed) / len(signed),
        "nearest_z": sign * min(signed),
    }
    share, nearest = found["beyond_5"], found["nearest_z"]
    print(f"{case}: z of {family} beyond {sign * 5} in {share:.3f} of {len(signed)}, nearest {nearest:.1f}")
    return found, found["beyond_5"] == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=200)
    parser.add_argument("--base", type=Path, help="a decomposed folder")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"m": M, "n": N, "k": K, "norm": NORM, "weights": args.weights}
    results: dict[str, Any] = {"settings": settings, "random": {}}
    claims = []
    for draws in DRAWS:
        made = (chain("random", seed) for seed in range(args.weights))
        results["random"][draws], holds = rates_of(measure("random", made, draws), args.weights, draws)
        claims.append(holds)
    for model in MODELS[1:]:
        print(f"updates drawn from, and measured beside, the model {model}")
        made = (chain(model, seed) for seed in range(args.weights // 2))
        results[model], holds = rates_of(measure(model, made, 10), args.weights // 2, 10, model)
        claims.append(holds)
    for case, family, sign in PLANTED:
        results[case], holds = check_planted(case, family, sign, args.weights // 10)
        claims.append(holds)
    if args.base:
        print(f"random updates of the weights of {args.base}")
        given = weights_of(args.base)
        chains = (chain("random", seed, w) for seed, w in enumerate(given))
        results["base"], _ = rates_of(measure("base", chains, 10, LARGEST_DEFAULT_K), len(given), 10)
    if args.out:
        write_json(args.out, results)
    return int(not all(claims))


if __name__ == "__main__":
    sys.exit(main())
