"""Did the adapter stay in the null space, and did it learn? Measured on the model as it is now."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from subspacelab.core.callbacks import Advance, Progress, no_progress
from subspacelab.core.devices import float64_place
from subspacelab.data.text import NoSuchPart, read_texts
from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import row_space
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_factors import Factors
from subspacelab.models.lora_folder import base_of, read_factors, read_meta
from subspacelab.models.lora_model import LiveAdapter, open_adapter, require_base
from subspacelab.models.text_windows import text_windows
from subspacelab.nullspace.calibration import (
    Inputs,
    SharedInput,
    choose_tokens,
    collect_inputs,
    in_passes,
    moment_bytes,
    shared_inputs,
)
from subspacelab.nullspace.config import VerifyAdapterConfig
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.metrics import Layer, layer_stats
from subspacelab.nullspace.paths import require_adapter
from subspacelab.nullspace.results import LayerStats, Sample, Summary, Verification, reading

MEANS = (
    *("BX_ratio", "BX_ratio_bos", "BX_ratio_rest", "BX_ratio_random", "BX_ratio_optimum", "base_BX_ratio"),
    *("ABX_ratio", "adapter_contribution", "DeltaX_ratio"),
)
NORMS = ("A_weight_norm", "B_weight_norm")


@dataclass(frozen=True)
class Probe:
    """The text that an adapter is verified on."""

    windows: Windows
    """All its tokens."""
    chosen: Bool[Tensor, "n length"]
    """The tokens that single norms are measured on."""
    batch_size: int
    """Windows per pass."""


def verify_adapter(
    folder: Path,
    settings: VerifyAdapterConfig,
    *,
    seed: int,
    device: torch.device | None = None,
    base: str | None = None,
    progress: Progress = no_progress,
) -> Verification:
    """Measures every layer of the adapter in `folder` on the test part of `settings.calib_dataset`.

    Calibration takes its windows of the train part. A text without a test part is measured on what may have been
    calibrated on, and a note says so.

    Inputs are those of the live model, and for the bound also the frozen base's: the base runs first and is gone
    before the adapter is opened, so that one model is in memory at a time. ValueError for a folder without an
    adapter, and when ||dW X|| <= ||A - A_0|| ||BX|| does not hold of a method that freezes B.
    """
    meta, device = read_meta(require_adapter(folder)), device or torch.device("cpu")
    method_of(meta["method"])
    source = base_of(meta, base)
    model = load_causal_lm(source.folder, device=device)
    factors = read_factors(folder, meta)
    require_base(model, factors, meta, source.reference, folder)
    targets = {name: model.get_submodule(name) for name in meta["targets"]}
    texts, note = unseen_texts(settings.calib_dataset)
    windows = text_windows(source.folder, texts, settings.calib_loader_size, settings.seq_len, seed)
    chosen = choose_tokens(windows.attention_mask, settings.max_activation_samples, seed)
    probe = Probe(windows, chosen, settings.batch_size)
    inputs = shared_inputs(model, targets, windows)
    bases = {shared.name: {name: row_space(factors[name].B) for name in shared.modules} for shared in inputs}
    with progress("verify", 2 * len(windows.input_ids), "windows") as advance:
        old = collect(model, inputs, probe, bases=bases, advance=advance)
        del model, targets
        live = open_adapter(folder, base=base, device=device)
        found = live_stats(live, inputs, probe, old, advance=advance)
    stats = tuple(found[name] for name in meta["targets"])
    sample = sample_of(settings, seed, note="; ".join(filter(None, (note, windows.shortage))))
    summary = summarise_layers(stats, live, sample, windows.num_tokens)
    return Verification(str(folder), settings.calib_dataset, len(stats), stats, summary, reading(summary))


def unseen_texts(reference: str) -> tuple[list[str], str]:
    """The test part of a text, which no calibration takes; where there is none, the train part and a note."""
    try:
        return read_texts(reference, split="test"), ""
    except NoSuchPart:
        return read_texts(reference), f"{reference} has no test part: calibration may have seen these tokens"


def inputs_of(folder: Path, calib_dataset: str, base: str | None) -> list[Path]:
    """What a verification reads: the adapter, the text and the base, as far as they are on this disk."""
    reference = read_meta(require_adapter(folder))["base"]["reference"] if base is None else base
    return [path for path in (folder, Path(calib_dataset), Path(reference)) if path.exists()]


def sample_of(settings: VerifyAdapterConfig, seed: int, note: str = "") -> Sample:
    """What a verification by these settings measures."""
    return Sample(seed, settings.calib_loader_size, settings.seq_len, settings.max_activation_samples, note)


def summarise_layers(stats: Sequence[LayerStats], live: LiveAdapter, sample: Sample, num_tokens: int) -> Summary:
    """Means of the ratios and root sums of squares of the weight norms over the layers."""
    means = {name: fmean(getattr(s, name) for s in stats) for name in MEANS}
    norms = {name: math.hypot(*(getattr(s, name) for s in stats)) for name in NORMS}
    return Summary(
        method=live.meta["method"],
        trained=bool(live.meta["trained"]),
        down_frozen=live.down_frozen,
        starts_at_zero=not live.initial,
        sample=sample,
        num_tokens=num_tokens,
        **means,
        **norms,
    )


def live_stats(
    live: LiveAdapter,
    inputs: Sequence[SharedInput],
    probe: Probe,
    old: Mapping[str, Inputs],
    *,
    advance: Advance,
) -> dict[str, LayerStats]:
    """Every layer's statistics; of as many inputs at a time as there is memory for their moments."""
    model = live.model.get_base_model()
    found: dict[str, LayerStats] = {}
    passes = list(in_passes(inputs, moment_bytes(model.device)))
    for together in passes:
        now = collect(model, together, probe, moments=True, advance=lambda n: advance(n / len(passes)))
        for shared in together:
            for name in shared.modules:
                found[name] = _one_layer(live, name, now[shared.name], old[shared.name], probe.windows.num_tokens)
    return found


def collect(model: Any, inputs: Sequence[SharedInput], probe: Probe, **wanted: Any) -> Mapping[str, Inputs]:
    layers = {shared.name: model.get_submodule(shared.name) for shared in inputs}
    return collect_inputs(model, layers, probe.windows, probe.chosen, batch_size=probe.batch_size, **wanted)


def _one_layer(live: LiveAdapter, name: str, now: Inputs, old: Inputs, num_tokens: int) -> LayerStats:
    f = live.factors()[name]
    device = float64_place(f.B.device)
    start = [None if t is None else t.detach().to(device) for t in (f.A0, f.B0)]
    layer = Layer(
        name,
        Factors(f.A.detach().to(device), f.B.detach().to(device), *start),
        live.residual_weight(name).detach().to(device),
        live.base_weight(name).detach().to(device),
        live.down_frozen,
    )
    try:
        return layer_stats(layer, now, old, num_tokens)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
