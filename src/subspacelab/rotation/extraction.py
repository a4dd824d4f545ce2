"""A checkpoint's training update as a LoRA adapter: the leading terms of each linear layer's update."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspacelab.checkpoints import Weights, canonical_name
from subspacelab.checkpoints.tensors import canonical_keys
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device, float64_place
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import replace_folder, write_csv, write_json
from subspacelab.core.ownership import require_own_entries
from subspacelab.linalg.update_parts import UpdateParts
from subspacelab.models.adaptable import adaptable_modules, described_model
from subspacelab.models.lora_folder import write_lora
from subspacelab.rotation.pairing import Pair, find_weight, open_pair
from subspacelab.rotation.plan import Selection, gflop

LAYERS, LEFT_OUT, RECORD = FILES = ("extracted_layers.csv", "left_out.csv", "extraction.json")
"""Files beside the adapter in its folder."""
COLUMNS = ("weight", "m", "n", "rank", "update_norm", "energy_kept")
LEFT_COLUMNS = ("weight", "update_norm", "share", "reason")


@dataclass(frozen=True)
class Extracted:
    """The result of `extract`."""

    folder: Path
    """A PEFT LoRA adapter on the base."""
    layers: pd.DataFrame
    """One row per adapted weight: weight, m, n, `rank`, `update_norm` ||D||_F, `energy_kept` ||L R||_F^2 /
    ||D||_F^2."""
    left_out: pd.DataFrame
    """One row per other changed tensor: weight, `update_norm`, `share` of ||D||_F^2 of the whole model, reason."""
    metrics: dict[str, Any]
    """Base and tuned checkpoint, settings, `energy_kept` of the adapted weights, `share_left_out` of the model's
    update, and `unmatched`: tensors that the base lacks or has in another shape, with the reason; they count in neither
    share."""

    @property
    def summary(self) -> str:
        """One sentence: number of weights, ranks, share of the update."""
        ranks, gone = self.layers["rank"], self.metrics["unmatched"]
        return (
            f"{len(self.layers)} weights of rank {ranks.min()} to {ranks.max()} (median {ranks.median():g}) keep "
            f"{self.metrics['energy_kept']:.2%} of the energy of their updates; {len(self.left_out)} other tensors "
            f"moved, with {self.metrics['share_left_out']:.2%} of the energy of the whole update, and are left out"
            + (f"; {len(gone)} are not in the base, such as {next(iter(gone))}" if gone else "")
        )


def extract(
    base: Weights,
    tuned: Weights,
    output_dir: Path | str,
    rank: int | None = None,
    energy: float | None = None,
    include: str | None = None,
    exclude: str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Extracted:
    """Writes the update of the linear layers, tuned - base, as a plain PEFT LoRA adapter on the base.

    Per weight D ~ U_k diag(S_k) V_k^T, the best approximation of its rank k: the same `rank` everywhere, or the
    smallest k that keeps the share `energy` of ||D||_F^2. lora_B = U_k S_k^(1/2), lora_A = S_k^(1/2) V_k^T, in float32,
    with scaling 1. The model that config.json describes determines which weights are linear layers, and their module
    names. Embeddings, tied heads, norms, biases, convolutions and fused experts are left out and listed.

    >>> extract("org/base", "org/tuned", "adapters/tuned", energy=0.9).summary

    Raises ValueError, in one line, unless exactly one of rank and energy is given; for checkpoints of two models or of
    one that transformers does not know, weights that are quantised or not finite, no changed linear layer, and a folder
    that is not empty.
    """
    if (rank is None) == (energy is None):
        raise SettingError(f"rank={rank}, energy={energy}: give one of the two")
    if (rank is not None and rank < 1) or (energy is not None and not 0 < energy <= 1):
        raise SettingError(f"rank={rank}, energy={energy}: rank from 1 on, energy above 0 and at most 1")
    folder = Path(output_dir)
    require_own_entries(folder, (), "this adapter")
    place = float64_place(choose_device(device))
    selection = Selection.of(include, exclude)
    pair = open_pair(base, tuned)
    targets = {key: target for key, target in _targets(pair).items() if selection.reason(key) is None}
    rows: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    costs = {key: gflop(pair.matrices[key][0].shape) for key in targets}
    with progress("extract", sum(costs.values()), "GFLOP") as advance:
        for key in pair.partners:
            if key not in targets:
                left += _left_out(pair, key, selection)
                continue
            (update,) = pair.updates(key, place)
            if update.whole.any():
                module, transposed = targets[key]
                u, s, vh, kept = _leading(update, rank, energy)
                factors[module] = _as_lora(u, s, vh, transposed)
                row = {"weight": canonical_name(key), "m": u.shape[0], "n": vh.shape[1], "rank": len(s)}
                rows.append(row | {"update_norm": _norm(update.whole), "energy_kept": kept})
            advance(costs[key])
    if not factors:
        named = f"{pair.base.source.reference} and {pair.tuned.source.reference}"
        raise CheckpointError(
            f"{named}: no linear layer differs (include={include!r}, exclude={exclude!r}); nothing to extract"
        )
    moved = sum(row["update_norm"] ** 2 for row in rows)
    layers, left_out = pd.DataFrame(rows, columns=COLUMNS), _shares(pd.DataFrame(left, columns=LEFT_COLUMNS), moved)
    turned = any(targets[key][1] for key in targets)
    metrics = {
        **pair.sources,
        **{"rank": rank, "energy": energy, "include": include, "exclude": exclude},
        "energy_kept": sum(row["energy_kept"] * row["update_norm"] ** 2 for row in rows) / moved,
        "share_left_out": float(left_out["share"].sum()),
        "unmatched": pair.unmatched,
    }
    with replace_folder(folder) as partial:
        write_lora(partial, factors, _reference(pair), fan_in_fan_out=turned)
        write_csv(partial / LAYERS, layers)
        write_csv(partial / LEFT_OUT, left_out)
        write_json(partial / RECORD, metrics)
    return Extracted(folder, layers, left_out, metrics)


def _targets(pair: Pair) -> dict[str, tuple[str, bool]]:
    """Key of each weight that an adapter can change -> its module in the model, and whether it is stored [in, out]."""
    modules = adaptable_modules(described_model(pair.tuned))
    keys = canonical_keys(key for key in pair.partners if key.endswith(".weight"))
    found = {
        key: (name, not isinstance(module, nn.Linear))
        for name, module in modules.items()
        if (key := find_weight(keys, name))
    }
    return {key: target for key, target in found.items() if len(pair.matrices.get(key, ())) == 1}


def _leading(
    update: UpdateParts, rank: int | None, energy: float | None
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"], float]:
    """The kept terms, and their share of ||D||_F^2."""
    svd = update.factors
    share = svd.S.double().square().cumsum(0)
    share = share / share[-1]
    k = rank if rank is not None else int((share < (energy or 1)).sum()) + 1
    k = min(k, int((svd.S > 0).sum()))
    return svd.U[:, :k], svd.S[:k], svd.Vh[:k], share[k - 1].item()


def _as_lora(
    u: Float[Tensor, "m k"], s: Float[Tensor, " k"], vh: Float[Tensor, "k n"], transposed: bool
) -> tuple[Float[Tensor, "k in"], Float[Tensor, "out k"]]:
    """(lora_A, lora_B), each with the square root of the singular values."""
    root = s.sqrt()
    left, right = (u * root).cpu(), (root[:, None] * vh).cpu()
    return (left.T, right.T) if transposed else (right, left)


def _left_out(pair: Pair, key: str, selection: Selection) -> list[dict[str, Any]]:
    """A row for a tensor that is not adapted, if it changed."""
    if not pair.is_floating(key):
        return []
    before, after = pair.read(key)
    norm = _norm(after.double() - before.double())
    reason = selection.reason(key) or ("a vector" if after.ndim < 2 else "no linear layer that PEFT adapts")
    return [{"weight": canonical_name(key), "update_norm": norm, "reason": reason}] if norm > 0 else []


def _norm(update: Tensor) -> float:
    return torch.linalg.vector_norm(update, dtype=torch.float64).item()


def _shares(left_out: pd.DataFrame, moved: float) -> pd.DataFrame:
    """The rows with `share` filled in, largest first."""
    squares = left_out["update_norm"].astype(float) ** 2
    filled = left_out.assign(update_norm=left_out["update_norm"].astype(float), share=squares / (moved + squares.sum()))
    return filled.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _reference(pair: Pair) -> dict[str, Any]:
    """The base in the form that PEFT finds again: the given path, or a repository at its commit."""
    source = pair.base.source
    return {"reference": source.reference, "revision": source.revision}
