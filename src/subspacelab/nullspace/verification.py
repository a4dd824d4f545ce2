"""Verification of an adapter in the present model: did it stay in the null space, and did it learn?"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from subspacelab.core.callbacks import Advance, Progress, no_progress
from subspacelab.core.devices import float64_place
from subspacelab.data.text import NoSuchPart, read_texts
from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import row_space
from subspacelab.models.block_stream import BlockStream, open_stream, with_adapter
from subspacelab.models.hidden_states import HiddenStates
from subspacelab.models.lora_factors import Factors, original
from subspacelab.models.lora_folder import META, base_of, is_intact, read_factors, read_meta
from subspacelab.models.lora_model import require_base
from subspacelab.models.text_windows import text_windows
from subspacelab.nullspace.calibration import Batches, Inputs, choose_tokens, collect_block, shared_inputs
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
    """The text for a verification."""

    windows: Windows
    """All tokens."""
    chosen: Bool[Tensor, "n length"]
    """The tokens over which norms are averaged."""
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

    Calibration takes its windows from the train part. A text without a test part is measured on text that may have been
    calibrated on, and a note says so.

    Inputs are those of the adapted model and, for the bound, also of the frozen base. Both pass the base block by
    block, so that one block is in memory at a time. ValueError for a folder without an adapter, and if ||dW X|| <= ||A
    - A_0|| ||BX|| does not hold for a method that freezes B.
    """
    meta, device = read_meta(require_adapter(folder)), device or torch.device("cpu")
    method_of(meta["method"])
    source = base_of(meta, base)
    factors = read_factors(folder, meta)
    stream, linears = open_stream(source.folder, device=device)
    with stream.loaded(next(i for i in range(len(stream)) if stream.within(i, factors))):
        require_base(stream.model, factors, meta, source.reference, folder)
    if "files" in meta and not is_intact(folder, meta):
        raise ValueError(f"{folder}: its tensors are not those that {META} was written with; build the adapter again")
    texts, note = unseen_texts(settings.calib_dataset)
    windows = text_windows(source.folder, texts, settings.calib_loader_size, settings.seq_len, seed)
    chosen = choose_tokens(windows.attention_mask, settings.max_activation_samples, seed)
    probe = Probe(windows, chosen, settings.batch_size)
    adapter = Adapter(
        {name: linears[name] for name in factors},
        factors,
        meta["down_frozen"],
        off=nullcontext,
        on=lambda layers: with_adapter(layers, {name: factors[name] for name in layers}),
    )
    with progress("verify", 2 * len(stream) * len(windows.input_ids), "windows") as advance:
        found = verify_blocks(stream, adapter, probe, advance)
    stats = tuple(found[name] for name in meta["targets"])
    sample = sample_of(settings, seed, note="; ".join(filter(None, (note, windows.shortage))))
    moved = any(f.A0 is not None for f in factors.values())
    summary = summarise_layers(stats, meta, sample, windows.num_tokens, moved=moved)
    return Verification(str(folder), settings.calib_dataset, len(stats), stats, summary, reading(summary))


def unseen_texts(reference: str) -> tuple[list[str], str]:
    """The test part of a text, which no calibration uses; if there is none, the train part and a note."""
    try:
        return read_texts(reference, split="test"), ""
    except NoSuchPart:
        return read_texts(reference), f"{reference} has no test part: calibration may have seen these tokens"


def inputs_of(folder: Path, calib_dataset: str, base: str | None) -> list[Path]:
    """Paths that a verification reads on this disk: the adapter, the text and the base."""
    reference = read_meta(require_adapter(folder))["base"]["reference"] if base is None else base
    return [path for path in (folder, Path(calib_dataset), Path(reference)) if path.exists()]


def sample_of(settings: VerifyAdapterConfig, seed: int, note: str = "") -> Sample:
    """The sample of a verification with these settings."""
    return Sample(seed, settings.calib_loader_size, settings.seq_len, settings.max_activation_samples, note)


def summarise_layers(
    stats: Sequence[LayerStats], meta: Mapping[str, Any], sample: Sample, num_tokens: int, *, moved: bool
) -> Summary:
    """Over the layers: means of ratios, root sums of squares of weight norms; `moved`: W_res differs from W."""
    means = {name: fmean(getattr(s, name) for s in stats) for name in MEANS}
    norms = {name: math.hypot(*(getattr(s, name) for s in stats)) for name in NORMS}
    return Summary(
        method=meta["method"],
        trained=bool(meta["trained"]),
        down_frozen=meta["down_frozen"],
        starts_at_zero=not moved,
        sample=sample,
        num_tokens=num_tokens,
        **means,
        **norms,
    )


@dataclass(frozen=True)
class Adapter:
    """Factors, their layers, and how to switch them off and on."""

    layers: Mapping[str, nn.Module]
    """Name -> layer of the model: nn.Linear, or PEFT's wrapper of one."""
    factors: Mapping[str, Factors]
    """Name -> factors."""
    down_frozen: bool
    """Whether B keeps its initial value."""
    off: Callable[[], AbstractContextManager[Any]]
    """Context in which the model is the base alone."""
    on: Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
    """Puts the adapter on these layers; their base weights are W_res afterwards."""


def verify_blocks(stream: BlockStream, adapter: Adapter, probe: Probe, advance: Advance) -> dict[str, LayerStats]:
    """Every layer's statistics: each block is run on the states of the frozen base, then of the adapted model."""
    windows = probe.windows
    few = Windows(windows.input_ids[:1, :2], windows.attention_mask[:1, :2])
    rows = torch.arange(len(windows.input_ids)).split(probe.batch_size)
    tiny = Batches(stream, few, [torch.tensor([0])], HiddenStates(stream.device))
    old, new = (Batches(stream, windows, rows, HiddenStates(torch.device("cpu"))) for _ in range(2))
    with stream.ends():
        for batches in (tiny, old, new):
            batches.embed()
    found: dict[str, LayerStats] = {}
    for index in range(len(stream)):
        layers = stream.within(index, adapter.layers)
        with stream.loaded(index):
            with adapter.off():
                inputs = shared_inputs(layers, partial(tiny.run, index))
                bases = {s.name: {name: row_space(adapter.factors[name].B) for name in s.modules} for s in inputs}
                base = collect_block(old, index, inputs, probe.chosen, bases=bases, advance=advance)
            with adapter.on(layers):
                live = collect_block(new, index, inputs, probe.chosen, moments=True, advance=advance)
            for shared in inputs:
                given = live.pop(shared.name), base.pop(shared.name), windows.num_tokens
                found |= {name: _one_layer(adapter, name, *given) for name in shared.modules}
        for batches in (tiny, old, new):
            batches.states.advance()
    return found


def _one_layer(adapter: Adapter, name: str, now: Inputs, old: Inputs, num_tokens: int) -> LayerStats:
    f, linear = adapter.factors[name], adapter.layers[name]
    inner: Any = linear
    weight = (inner.get_base_layer() if hasattr(inner, "get_base_layer") else inner).weight.detach()
    device = float64_place(weight.device)
    a, b, a0, b0 = (None if t is None else t.detach().to(device) for t in (f.A, f.B, f.A0, f.B0))
    assert a is not None
    assert b is not None
    factors = Factors(a, b, a0, b0)
    layer = Layer(name, factors, weight.to(device), original(weight, factors).to(device), adapter.down_frozen)
    try:
        return layer_stats(layer, now, old, num_tokens)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
