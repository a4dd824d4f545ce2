"""The null space of a live model: calibration, adding an adapter, verification; nothing is written to disk."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from subspacelab.checkpoints import Weights, read_tensors, source_of, write_tensors
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.errors import CheckpointError, SettingError
from subspacelab.core.files import read_json, write_json
from subspacelab.core.ownership import require_own_entries
from subspacelab.data.windows import Windows
from subspacelab.models.adaptable import target_linears
from subspacelab.models.block_stream import PROBE, BlockStream, open_stream, stream_of
from subspacelab.models.causal_lm import require_no_look_ahead
from subspacelab.models.hidden_states import HiddenStates
from subspacelab.nullspace.calibration import (
    Batches,
    CalibrationBatches,
    Moments,
    SharedInput,
    calibrate_block,
    choose_tokens,
    require_enough_tokens,
    shared_inputs,
)
from subspacelab.nullspace.inits import method_of
from subspacelab.nullspace.results import Sample, Verification, reading
from subspacelab.nullspace.starts import input_starts, plain_starts, require_rank, summarise
from subspacelab.nullspace.verification import Adapter, Probe, summarise_layers, verify_blocks
from subspacelab.nullspace.windows import Tokens, as_windows

PARTS = ("moments.safetensors", "calibration.json")
"""Files that `Calibration.save` writes."""


@dataclass(frozen=True)
class Calibration:
    """Second moments of the inputs of a model's linear layers, float64, not centred."""

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
        """Writes moments.safetensors and calibration.json; ValueError if the folder holds other files."""
        require_own_entries(Path(folder), PARTS, "a calibration")
        parts = ("first", "second", "held_out")
        tensors = {f"{name}.{part}": getattr(m, part) for name, m in self.moments.items() for part in parts}
        counts = {name: [m.num_tokens, m.num_held_out] for name, m in self.moments.items()}
        write_tensors(Path(folder) / "moments.safetensors", tensors)
        write_json(Path(folder) / "calibration.json", {"inputs": [asdict(i) for i in self.inputs], "tokens": counts})

    @classmethod
    def load(cls, folder: Path | str) -> "Calibration":
        """Reads what `save` wrote; CheckpointError for anything else."""
        tensors, _ = read_tensors(Path(folder) / "moments.safetensors")
        content = read_json(Path(folder) / "calibration.json")
        moments = {}
        try:
            inputs = tuple(SharedInput(tuple(entry["modules"]), entry["width"]) for entry in content["inputs"])
            for name in (shared.name for shared in inputs):
                first, second, held_out = (tensors[f"{name}.{part}"] for part in ("first", "second", "held_out"))
                num_tokens, num_held_out = content["tokens"][name]
                moments[name] = Moments.of(first, second, held_out, num_tokens=num_tokens, num_held_out=num_held_out)
        except (LookupError, TypeError) as e:
            raise CheckpointError(f"{folder}: not a calibration, or a damaged one ({e!r}); calibrate again") from e
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
    """X^T X of the inputs X [tokens, dim] of every linear layer, over windows of text that the model shall not forget.

    `model`: a causal language model, live or by reference. `windows`: token ids [n, length]; one eighth of them is held
    out. `targets`: regular expressions that select layers by name; by default all but the head.

    Raises ValueError for fewer than 8 tokens per dimension (unless `allow_few_tokens`) or fewer than 3 windows, for a
    layer that takes no part in a forward pass, and for NaN or infinity among the inputs.

        calibration = calibrate(model, ids)            # ids: [256, 2048]
        model = add_adapter(model, calibration, method="lora_null_v2", rank=64)
    """
    given = as_windows(windows)
    folder = None
    if isinstance(model, nn.Module):
        linears = _linears_of(model, targets)
        _require_fitting(given, model, batch_size)
        with _evaluating(model):
            stream = stream_of(model, linears)
    else:
        found = [targets] if isinstance(targets, str) else targets
        folder = source_of(model).folder
        stream, linears = open_stream(folder, device=choose_device(device), targets=found)
        _require_fitting(given, stream.model, batch_size)
    if not allow_few_tokens:
        require_enough_tokens(given, linears)
    with _evaluating(stream.model):
        return _calibrate(stream, linears, given, batch_size, progress, folder)


def _calibrate(
    stream: BlockStream,
    linears: Mapping[str, nn.Linear],
    windows: Windows,
    batch_size: int,
    progress: Progress,
    folder: Path | None,
) -> Calibration:
    """Calibrates block by block; ValueError if tokens of the model in `folder` see later ones."""
    inputs: list[SharedInput] = []
    moments: dict[str, Moments] = {}
    batches = CalibrationBatches(stream, windows, batch_size, HiddenStates(torch.device("cpu")))
    with stream.ends():
        ids = PROBE % stream.model.config.get_text_config().vocab_size
        few = Windows(ids, torch.ones_like(ids, dtype=torch.bool))
        probe = Batches(stream, few, [torch.arange(len(ids))], HiddenStates(stream.device))
        for part in (probe, batches):
            part.embed()
    with progress("calibrating", len(stream) * len(windows.input_ids), "windows") as advance:
        for index in range(len(stream)):
            with stream.loaded(index):
                here = shared_inputs(stream.within(index, linears), partial(probe.run, index))
                found = calibrate_block(batches, index, here, advance)
            inputs += here
            moments |= {name: m.to(torch.device("cpu")) for name, m in found.items()}
            for part in (probe, batches):
                part.states.advance()
            if folder is not None:
                require_no_look_ahead(folder, stream.model, partial(probe.states.before, 0))
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
    """Puts an adapter on a live model, in place; only the parameters that the method trains require gradients.

    `method`: lora_null_v2 (B spans the null space of the calibration and is frozen, arXiv 2503.02659), or a control
    that needs no calibration: frozen_random (B random and frozen) or lora. The result is a PeftModel, which any loop
    can train; its `save_pretrained` writes an adapter that plain PEFT loads. Methods that subtract their start from the
    model's weights are built by `build_adapter`, which writes both. `nullspace_meta` of the model describes the adapter
    layer by layer. `targets` as in `calibrate`; by default all calibrated layers.

    Raises SettingError for such a method, a missing calibration or one of another model, a model that already has an
    adapter, and a rank larger than a layer.
    """
    from subspacelab.models.lora_factors import seeded
    from subspacelab.models.lora_model import attach_adapter, set_trainable

    chosen = method_of(method)
    if chosen.moves_weight:
        raise SettingError(
            f"method={method!r}: changes the weights of the model; build it by `nullspace.build_adapter`"
        )
    if not isinstance(calibration, Calibration) and (chosen.needs_calibration or calibration is not None):
        raise SettingError(f"method={method!r}: starts from calibration inputs; give those of `calibrate`")
    linears, training = _linears_of(model, targets), model.training
    inputs: list[tuple[SharedInput, Moments]] = []
    if calibration is not None:
        inputs = _inputs_among(linears, calibration, chosen=bool(targets))
        linears = {name: linears[name] for shared, _ in inputs for name in shared.modules}
    require_rank(rank, linears, chosen)
    with seeded(seed), torch.no_grad():
        found = dict(start for given in inputs for start in input_starts(linears, chosen, rank, *given))
        found = found or dict(plain_starts(linears, chosen, rank))
    layers = [found[name][1] for name in linears]
    meta = {"method": method, "rank": rank, "seed": seed, "down_frozen": chosen.down_frozen}
    meta |= {"targets": list(linears), "layers": [layer.as_json() for layer in layers], "summary": summarise(layers)}
    live = attach_adapter(model, {name: found[name][0] for name in linears}, meta)
    set_trainable(live.model, up=True, down=not chosen.down_frozen)
    live.model.nullspace_meta = meta
    return live.model.train(training)


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

    `model`: from `add_adapter`, or any PeftModel with plain LoRA of scaling 1 (treated as method lora). Its base is the
    model with the adapter switched off. Norms of single tokens are means over `max_activation_samples` tokens, drawn by
    `seed`.

    Raises SettingError for an adapter of another kind, or one that is switched off or merged, and ValueError if the
    bound ||dW X|| <= ||A|| ||BX|| does not hold for a frozen B.

        found = verify(model, ids)
        found.to_frame(), found.summary, found.verdicts
    """
    from subspacelab.models.lora_model import ADAPTER, LiveAdapter, lora_layers

    layers: dict[str, Any] = dict(lora_layers(model)) if hasattr(model, "get_base_model") else {}
    reasons = (f"{name} {why}" for name, layer in layers.items() if (why := _why_not_plain(layer, ADAPTER)))
    wrong = next(reasons, None) if layers else f"has no adapter {ADAPTER!r}"
    if wrong is not None:
        raise SettingError(f"model: {wrong}; verify one of `add_adapter`, or the folder by `verify_adapter`")
    given = as_windows(windows)
    _require_fitting(given, model.get_base_model(), batch_size)
    meta = dict(getattr(model, "nullspace_meta", {"method": "lora", "down_frozen": False}))
    factors, base = LiveAdapter(model, meta, {}).factors(), model.get_base_model()
    meta["trained"] = any(bool(f.A.any()) for f in factors.values())
    adapter = Adapter(layers, factors, meta["down_frozen"], off=model.disable_adapter, on=nullcontext)
    probe = Probe(given, choose_tokens(given.attention_mask, max_activation_samples, seed), batch_size)
    with _evaluating(model):
        stream = stream_of(base, layers)
        with progress("verify", 2 * len(stream) * len(given.input_ids), "windows") as advance:
            found = verify_blocks(stream, adapter, probe, advance)
    stats = tuple(found[name] for name in layers)
    num, length = given.input_ids.shape
    sample = Sample(seed, num, length, max_activation_samples, given.shortage)
    summary = summarise_layers(stats, meta, sample, given.num_tokens, moved=False)
    text = f"{num} windows of {length} tokens"
    return Verification(type(base).__name__, text, len(stats), stats, summary, reading(summary))


def _linears_of(model: Any, targets: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The layers to adapt; SettingError unless the model is a language model with weights and without an adapter."""
    if not hasattr(model, "get_output_embeddings"):
        raise SettingError(f"model: {type(model).__name__} is no language model of transformers; give a live one")
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise SettingError("model: carries an adapter already; take it off first, by `unload` or `merge_and_unload`")
    if model.device.type == "meta":
        raise SettingError("model: has shapes and no weights (device meta); load them first")
    if model.config.is_encoder_decoder:
        raise SettingError(f"model: {type(model).__name__} has an encoder; give a causal language model")
    return target_linears(model, [targets] if isinstance(targets, str) else list(targets or ()) or None)


def _inputs_among(
    linears: Mapping[str, nn.Linear], calibration: Calibration, *, chosen: bool
) -> list[tuple[SharedInput, Moments]]:
    """The calibrated inputs of `linears`; SettingError if calibration and model differ in layers or widths."""
    widths = {name: shared.width for shared in calibration.inputs for name in shared.modules}
    for name in linears if chosen else widths:
        if name not in linears or widths.get(name) != linears[name].in_features:
            raise SettingError(
                f"calibration: does not fit {name} of this model; calibrate this model, with these targets"
            )
    kept = ((tuple(n for n in shared.modules if n in linears), shared) for shared in calibration.inputs)
    return [(SharedInput(names, of.width), calibration.moments[of.name]) for names, of in kept if names]


def _require_fitting(windows: Windows, model: Any, batch_size: int) -> None:
    """SettingError for token ids or positions beyond the model's tables, and for empty batches."""
    ids, words = windows.input_ids, model.get_input_embeddings()
    if ids.min() < 0 or ids.max() >= len(words.weight):
        found = f"{int(ids.min())} to {int(ids.max())}"
        raise SettingError(f"windows: ids {found}, the model has 0 to {len(words.weight) - 1}; use its own tokenizer")
    most, length = getattr(model.config, "max_position_embeddings", ids.shape[1]), ids.shape[1]
    learned = any(isinstance(table, nn.Embedding) and table.weight is not words.weight for table in model.modules())
    if learned and length > most:
        raise SettingError(f"windows: {length} tokens long, the model has {most} positions; cut them shorter")
    if batch_size < 1:
        raise SettingError(f"batch_size={batch_size}: at least 1 window")


def _why_not_plain(layer: Any, adapter: str) -> str | None:
    """Why one of PEFT's layers does not compute W x + A B x with our adapter now; None if it does."""
    if layer.scaling[adapter] != 1:
        return f"scales by {layer.scaling[adapter]:g}"
    if not isinstance(layer.get_base_layer(), nn.Linear) or adapter in layer.lora_variant or layer.lora_bias[adapter]:
        return "is not plain LoRA on an nn.Linear"
    if layer.merged:
        return "has its adapter merged; call `unmerge_adapter` first"
    if layer.disable_adapters or list(layer.active_adapters) != [adapter]:
        return f"does not run with {adapter!r} alone; switch it on by `enable_adapter_layers` and `set_adapter`"
    return None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards the mode and `requires_grad` of every part are restored."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trained:  # which PEFT sets as it switches an adapter on again
            parameter.requires_grad_(requires_grad)
