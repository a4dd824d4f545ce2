"""The null space of a live model: calibrate it, put an adapter on it, verify that. Nothing is read or written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from subspacelab.checkpoints import Weights, read_tensors, source_of, write_tensors
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.errors import SettingError
from subspacelab.core.files import read_json, write_json
from subspacelab.data.windows import Windows
from subspacelab.linalg.null_space import row_space
from subspacelab.models.causal_lm import load_causal_lm, target_linears
from subspacelab.nullspace.activations import choose_tokens
from subspacelab.nullspace.calibration import (
    Moments,
    SharedInput,
    calibrate_inputs,
    in_passes,
    moment_bytes,
    require_enough_tokens,
    shared_inputs,
    split_windows,
)
from subspacelab.nullspace.config import BuildSettings
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.layer_report import summarise
from subspacelab.nullspace.results import Sample, Verification, reading
from subspacelab.nullspace.starts import Task, input_starts, plain_starts, require_rank
from subspacelab.nullspace.verification import Probe, collect, live_stats, summarise_layers

Tokens = Windows | Int[Tensor, "n length"] | Iterable[Any]
"""Text as token ids: one tensor, or batches of a data loader, tensors or mappings with `input_ids` (and, where there
is padding, `attention_mask`)."""


@dataclass(frozen=True)
class Calibration:
    """Second moments of everything that goes into a model's linear layers, float64, not centred."""

    inputs: tuple[SharedInput, ...]
    """The distinct inputs, each with the layers that read it."""
    moments: dict[str, Moments]
    """Name of an input -> its moments, on the CPU."""

    def to_frame(self) -> pd.DataFrame:
        """One row per distinct input: the layers that read it, its width, tokens calibrated on and held out."""
        rows = [
            {
                "input": shared.name,
                "layers": ", ".join(shared.modules),
                "width": shared.width,
                "num_tokens": self.moments[shared.name].num_tokens,
                "num_held_out": self.moments[shared.name].num_held_out,
            }
            for shared in self.inputs
        ]
        return pd.DataFrame(rows)

    def save(self, folder: Path | str) -> None:
        """Writes moments.safetensors and calibration.json."""
        parts = ("first", "second", "held_out")
        tensors = {f"{name}.{part}": getattr(m, part) for name, m in self.moments.items() for part in parts}
        counts = {name: [m.num_tokens, m.num_held_out] for name, m in self.moments.items()}
        write_tensors(Path(folder) / "moments.safetensors", tensors)
        write_json(Path(folder) / "calibration.json", {"inputs": [asdict(i) for i in self.inputs], "tokens": counts})

    @classmethod
    def load(cls, folder: Path | str) -> "Calibration":
        """What `save` wrote."""
        tensors, _ = read_tensors(Path(folder) / "moments.safetensors")
        content = read_json(Path(folder) / "calibration.json")
        inputs = tuple(SharedInput(tuple(entry["modules"]), entry["width"]) for entry in content["inputs"])
        moments = {}
        for name in (shared.name for shared in inputs):
            first, second, held_out = (tensors[f"{name}.{part}"] for part in ("first", "second", "held_out"))
            moments[name] = Moments(first, second, held_out, *content["tokens"][name])
        return cls(inputs, moments)


def calibrate(
    model: nn.Module | Weights,
    windows: Tokens,
    *,
    targets: Sequence[str] | None = None,
    batch_size: int = 8,
    allow_few_tokens: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Calibration:
    """X^T X of the inputs X [tokens, dim] of every linear layer, over windows of the text that a model shall keep.

    `model`: a live causal language model, or where one lies. `windows`: token ids [n, length]; an eighth of them is
    held out. `targets`: regular expressions that find layers by name; all but the head by default.

    Raises SettingError for fewer than 8 tokens per dimension (`allow_few_tokens`), ValueError for fewer than 3 windows,
    for a layer that takes no part, and for NaN among the inputs.

        calibration = calibrate(model, ids)            # ids: [256, 2048]
        model = add_adapter(model, calibration, method="lora_null_v2", rank=64)
    """
    live = model
    if not isinstance(live, nn.Module):
        live = load_causal_lm(source_of(live).folder, device=choose_device(device))
    given = as_windows(windows)
    inputs = shared_inputs(live, target_linears(live, list(targets) if targets else None), given)
    if not allow_few_tokens:
        require_enough_tokens(given, split_windows(given), inputs)
    moments: dict[str, Moments] = {}
    passes = list(in_passes(inputs, moment_bytes(_device_of(live))))
    with progress("calibrating", len(passes) * len(given.input_ids), "windows") as advance, _evaluating(live):
        for batch in passes:
            found = calibrate_inputs(live, given, batch, batch_size=batch_size, advance=advance)
            moments |= {name: m.to(torch.device("cpu")) for name, m in found.items()}
    return Calibration(tuple(inputs), moments)


def add_adapter(
    model: Any,
    calibration: Calibration | None = None,
    *,
    method: str = "lora_null_v2",
    rank: int = 64,
    targets: Sequence[str] | None = None,
    seed: int = 233,
) -> Any:
    """Puts an adapter on a live model, in place: what the method lets train requires gradients, all else is frozen.

    `method`: lora_null_v2 (B spans the null space of the calibration and is frozen, arXiv 2503.02659), or its controls
    frozen_random (B random and frozen) and lora, which need no calibration. Train the PeftModel that comes back by any
    loop; `save_pretrained` writes what plain PEFT loads. Methods that take their start out of the model's weights are
    `build_adapter`'s, which writes both. `nullspace_meta` of the model says what was built, layer by layer.

    Raises SettingError for such a method, a missing calibration, and a rank larger than a layer.
    """
    from subspacelab.models.lora_factors import seeded
    from subspacelab.models.lora_model import attach_adapter, set_trainable

    chosen = method_of(method)
    if chosen.moves_weight:
        raise SettingError(f"method={method!r}: moves the weights of the model; build it by `nullspace.build_adapter`")
    if chosen.needs_calibration and calibration is None:
        raise SettingError(f"method={method!r}: starts from calibration inputs; give those of `calibrate`")
    linears = target_linears(model, list(targets) if targets else None)
    if calibration is not None:
        linears = {name: linears[name] for shared in calibration.inputs for name in shared.modules}
    require_rank(rank, linears, chosen)
    task = Task(model, linears, chosen, rank, None, BuildSettings())
    with seeded(seed), torch.no_grad():
        found = dict(
            start
            for shared in (calibration.inputs if calibration else ())
            for start in input_starts(task, shared, calibration.moments[shared.name])  # type: ignore[union-attr]
        ) or dict(plain_starts(task))
    layers = [found[name][1] for name in linears]
    meta = {"method": method, "rank": rank, "seed": seed, "down_frozen": chosen.down_frozen}
    meta |= {"targets": list(linears), "layers": [layer.as_json() for layer in layers], "summary": summarise(layers)}
    live = attach_adapter(model, {name: found[name][0] for name in linears}, meta)
    set_trainable(live.model, up=True, down=not chosen.down_frozen)
    live.model.nullspace_meta = meta
    return live.model


def verify(
    model: Any,
    windows: Tokens,
    *,
    max_activation_samples: int = 100,
    batch_size: int = 4,
    seed: int = 233,
    progress: Progress = no_progress,
) -> Verification:
    """Measures every layer of a live adapter: is B in the null space of these tokens, and was anything learned?

    `model`: of `add_adapter`, or any PeftModel with plain LoRA of scaling 1 (then as method lora). Its base is what it
    is with the adapter off. Norms of single tokens are means over `max_activation_samples`, drawn by `seed`.

    Raises SettingError for an adapter of another kind, and ValueError when the bound ||dW X|| <= ||A|| ||BX|| does not
    hold though B was frozen.

        found = verify(model, ids)
        found.to_frame(), found.summary, found.verdicts
    """
    from subspacelab.models.lora_model import ADAPTER, LiveAdapter, lora_layers

    layers = dict(lora_layers(model)) if hasattr(model, "get_base_model") else {}
    wrong = next((name for name, layer in layers.items() if layer.scaling[ADAPTER] != 1), None)
    if not layers or wrong is not None:
        what = f"{wrong} scales by {layers[wrong].scaling[ADAPTER]:g}" if wrong else f"has no adapter {ADAPTER!r}"
        raise SettingError(f"model: {what}; verify one of `add_adapter`, or the folder by `verify_adapter`")
    given = as_windows(windows)
    meta = dict(getattr(model, "nullspace_meta", {"method": "lora", "down_frozen": False}))
    live = LiveAdapter(model, meta, {})
    factors = live.factors()
    meta["trained"] = any(bool(f.A.any()) for f in factors.values())
    base = model.get_base_model()
    probe = Probe(given, choose_tokens(given.attention_mask, max_activation_samples, seed), batch_size)
    inputs = shared_inputs(base, layers, given)  # type: ignore[arg-type]
    bases = {shared.name: {name: row_space(factors[name].B.detach()) for name in shared.modules} for shared in inputs}
    with progress("verify", 2 * len(given.input_ids), "windows") as advance, _evaluating(model):
        with model.disable_adapter():
            old = collect(base, inputs, probe, bases=bases, advance=advance)
        found = live_stats(live, inputs, probe, old, advance=advance)
    stats = tuple(found[name] for name in layers)
    num, length = given.input_ids.shape
    sample = Sample(seed, num, length, max_activation_samples, given.shortage)
    summary = summarise_layers(stats, live, sample, given.num_tokens)
    text = f"{num} windows of {length} tokens"
    return Verification(type(base).__name__, text, len(stats), stats, summary, reading(summary))


def as_windows(windows: Tokens) -> Windows:
    """Token ids of any of the forms of `Tokens` as windows; shorter ones are padded on the right, and masked."""
    if isinstance(windows, Windows):
        return windows
    batches = [windows] if isinstance(windows, Tensor) else list(windows)
    rows: list[Tensor] = []
    for batch in batches:
        named = batch if isinstance(batch, Mapping) else {"input_ids": batch}
        ids = torch.as_tensor(named["input_ids"])
        mask = torch.as_tensor(named.get("attention_mask", torch.ones_like(ids))).bool()
        rows += [row[kept].cpu().long() for row, kept in zip(ids, mask, strict=True)]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        raise SettingError("windows: no token ids [n, length]; give a tensor or batches of such")
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return Windows(pad(rows, batch_first=True), mask)


class _evaluating:
    """A model in evaluation mode within the block, and as it was after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.training = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.training)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
