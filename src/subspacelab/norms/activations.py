"""Massive activations of the residual stream, beside the norm scales of their dimensions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from subspacelab.checkpoints import Checkpoint, Weights, open_checkpoint, open_source, source_of
from subspacelab.core.callbacks import Progress, no_progress
from subspacelab.core.devices import choose_device
from subspacelab.core.errors import SettingError
from subspacelab.data.text import read_texts
from subspacelab.data.windows import Windows
from subspacelab.models.causal_lm import load_causal_lm, load_tokenizer
from subspacelab.models.residual_stream import blocks_of, run_trunk, watched_stream
from subspacelab.models.text_windows import text_windows
from subspacelab.models.tokens import max_positions
from subspacelab.norms.results import MAGNITUDE, RATIO, Massive
from subspacelab.norms.survey import NormLayer, survey


def massive(
    model: Weights,
    text: str | Path | Int[Tensor, "n length"],
    *,
    num_windows: int = 16,
    seq_len: int = 256,
    num_dims: int = 4,
    batch_size: int = 4,
    seed: int = 233,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Massive:
    """Dimensions of the residual stream with massive activations, layer by layer (arXiv 2402.17762).

    An activation is massive if |x| > 100 and |x| > 1000 times the median |x| of its window in that layer. `model`: a
    causal language model, live or by reference. `text`: a file or data set, from which `num_windows` windows of
    `seq_len` tokens are drawn by `seed` (`models.text_windows`); or token ids [n, length]. The `num_dims` dimensions
    with the largest ratios are followed and, as a control, as many random ones.

        found = massive("HuggingFaceTB/SmolLM2-135M", "wikitext2")
        found.layers, found.scales, found.plot()

    ValueError, naming the layer, for NaN or infinity, and for a text without tokens.
    """
    for name, value in (("num_windows", num_windows), ("num_dims", num_dims), ("batch_size", batch_size)):
        if value < 1:
            raise SettingError(f"{name}={value}: at least 1")
    place = choose_device(device)
    live, checkpoint, windows, tokenizer = _opened(model, text, num_windows, seq_len, seed, place)
    stream = _measure(live, windows, batch_size, progress)
    followed = _followed(stream, num_dims, seed)
    layers, dims = _layer_table(stream, windows, tokenizer), _dim_table(stream, followed)
    with checkpoint:
        scales = _scale_table(checkpoint, followed, stream.largest.shape[1])
    metrics: dict[str, Any] = {
        "model": checkpoint.source.reference if checkpoint.source.revision else checkpoint.source.name,
        "revision": checkpoint.source.revision,
        "num_windows": len(windows.input_ids),
        "num_tokens": windows.num_tokens,
        "num_dims": num_dims,
        "seed": seed,
        "prefix": list(windows.prefix),
        "notes": [windows.shortage] if windows.shortage else [],
    }
    metrics |= _headline(layers, dims, scales, stream)
    return Massive(layers, dims, scales, metrics | {"summary": _summary(metrics)})


def _opened(
    model: Weights, text: Any, num_windows: int, seq_len: int, seed: int, place: torch.device
) -> tuple[Any, Checkpoint, Windows, Any]:
    """The live model, its checkpoint, the windows, and the tokenizer if there is one."""
    if isinstance(model, nn.Module):
        if not isinstance(text, Tensor):
            raise SettingError("text: of a live model the tokenizer is not known; give token ids [n, length]")
        blocks_of(model)  # refuses what is no language model
        return model, open_checkpoint(model), _given(text, model), None
    source = source_of(model)
    live = load_causal_lm(source.folder, device=place)
    if isinstance(text, Tensor):
        return live, open_source(source), _given(text, live), None
    windows = text_windows(source.folder, read_texts(str(text)), num_windows, seq_len, seed)
    return live, open_source(source), windows, load_tokenizer(source.folder)


def _given(ids: Tensor, model: Any) -> Windows:
    """The caller's token ids as windows; SettingError for ids that the model cannot read."""
    if ids.ndim != 2 or ids.numel() == 0 or ids.dtype not in (torch.int32, torch.int64):
        raise SettingError(f"text: a tensor {list(ids.shape)} of {ids.dtype}; token ids [n, length] are needed")
    size, limit = model.get_input_embeddings().num_embeddings, max_positions(model.config)
    if int(ids.min()) < 0 or int(ids.max()) >= size:
        raise SettingError(f"text: token ids {int(ids.min())} to {int(ids.max())}, the model has 0 to {size - 1}")
    if limit and ids.shape[1] > limit:
        raise SettingError(f"text: windows of {ids.shape[1]} tokens, the model has {limit} positions; cut them")
    return Windows(ids.cpu(), torch.ones_like(ids, dtype=torch.bool, device="cpu"))


@dataclass(frozen=True)
class _Stream:
    """Statistics of the residual stream per layer and dimension."""

    medians: Float[Tensor, "layers windows"]
    """Median |x| of each window."""
    largest: Float[Tensor, "layers dim"]
    """Largest |x|."""
    ratio: Float[Tensor, "layers dim"]
    """Largest ratio of |x| to the median of its window."""
    place: Int[Tensor, "layers dim 2"]
    """Window and position of that ratio."""
    count: Int[Tensor, "layers dim"]
    """Number of massive activations."""
    first: Int[Tensor, "layers dim"]
    """Number of massive activations at the first token of a window."""

    @property
    def is_massive(self) -> Bool[Tensor, " dim"]:
        """Whether each dimension has a massive activation in any layer."""
        return self.count.sum(0) > 0


def _measure(model: Any, windows: Windows, batch_size: int, progress: Progress) -> _Stream:
    num_windows, depth = len(windows.input_ids), len(blocks_of(model)) + 1
    dim = model.config.get_text_config().hidden_size
    medians = torch.zeros(depth, num_windows)
    largest, ratio = torch.zeros(depth, dim), torch.full((depth, dim), -1.0)
    place = torch.zeros(depth, dim, 2, dtype=torch.long)
    count, first = (torch.zeros(depth, dim, dtype=torch.long) for _ in range(2))
    rows: list[int] = []

    def take(layer: int, x: Tensor) -> None:
        for i, row in enumerate(rows):
            magnitude = x[i].float().abs().cpu()[windows.attention_mask[row]]
            if not torch.isfinite(magnitude).all():
                raise ValueError(f"NaN or infinity in the residual stream of layer {layer}; the checkpoint is damaged")
            medians[layer, row] = median = magnitude.median()
            found, position = magnitude.max(0)
            is_massive = (magnitude > MAGNITUDE) & (magnitude > RATIO * median)
            count[layer] += is_massive.sum(0)
            first[layer] += is_massive[0]
            largest[layer] = torch.maximum(largest[layer], found)
            relative = found / median.clamp(min=torch.finfo(torch.float32).tiny)
            better = relative > ratio[layer]
            ratio[layer] = torch.where(better, relative, ratio[layer])
            here = torch.stack([torch.full_like(position, row), position], 1)
            place[layer] = torch.where(better[:, None], here, place[layer])

    was_training = model.training
    model.eval()
    try:
        with progress("massive", num_windows, "windows") as advance, watched_stream(model, take):
            for batch in torch.arange(num_windows).split(batch_size):
                rows[:] = batch.tolist()
                run_trunk(model, windows.input_ids[batch], windows.attention_mask[batch])
                advance(len(batch))
    finally:
        model.train(was_training)
    return _Stream(medians, largest, ratio, place, count, first)


def _followed(stream: _Stream, num_dims: int, seed: int) -> list[tuple[str, int]]:
    """(kind, dimension) of the dimensions with the largest ratios, massive or not, and of as many random ones."""
    order = stream.ratio.amax(0).argsort(descending=True, stable=True).tolist()
    leading, others = order[:num_dims], [d for d in order[num_dims:] if not stream.is_massive[d]]
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:num_dims].tolist()
    kinds = [("massive" if stream.is_massive[d] else "largest", d) for d in leading]
    return kinds + [("random", d) for d in sorted(sorted(others)[i] for i in drawn)]


def _layer_table(stream: _Stream, windows: Windows, tokenizer: Any) -> pd.DataFrame:
    rows = []
    for layer in range(len(stream.largest)):
        dim = int(stream.ratio[layer].argmax())
        window, position = stream.place[layer, dim].tolist()
        token = int(windows.input_ids[window, position])
        rows.append(
            {
                "layer": layer,
                "median": float(stream.medians[layer].median()),
                "typical_largest": float(stream.largest[layer].median()),
                "largest": float(stream.largest[layer, dim]),
                "ratio": float(stream.ratio[layer, dim]),
                "dim": dim,
                "position": position,
                "token": (tokenizer.convert_ids_to_tokens(token) if tokenizer else None) or str(token),
                "massive": int(stream.count[layer].sum()),
                "massive_dims": int((stream.count[layer] > 0).sum()),
                "first": int(stream.first[layer].sum()),
            }
        )
    return pd.DataFrame(rows)


def _dim_table(stream: _Stream, followed: Sequence[tuple[str, int]]) -> pd.DataFrame:
    rows = [
        {
            "kind": kind,
            "dim": dim,
            "layer": layer,
            "largest": float(stream.largest[layer, dim]),
            "ratio": float(stream.ratio[layer, dim]),
            "massive": int(stream.count[layer, dim]),
        }
        for kind, dim in followed
        for layer in range(len(stream.largest))
    ]
    return pd.DataFrame(rows)


def _scale_table(checkpoint: Checkpoint, followed: Sequence[tuple[str, int]], width: int) -> pd.DataFrame:
    """Scales of every norm layer as wide as the stream; layers that a quantised file stores as codes are left out."""
    norms = [n for n in survey(checkpoint).norms if checkpoint.info(n.key).shape == (width,)]
    readable = [n for n in norms if checkpoint.info(n.key).is_floating and checkpoint.quantisation(n.key) is None]
    stored = dict(checkpoint.read_many([n.key for n in readable]))
    rows = [row for norm in readable for row in _scales_of(norm, stored[norm.key].double(), followed)]
    columns = ["kind", "dim", "norm", "block", "scale", "typical", "rank"]
    return pd.DataFrame(rows, columns=columns).astype({"block": "Int64"})


def _scales_of(
    norm: NormLayer, stored: Float[Tensor, " dim"], followed: Sequence[tuple[str, int]]
) -> Iterator[dict[str, Any]]:
    scale = 1 + stored if norm.zero_centred else stored
    size = scale.abs()
    name = norm.name.kind.partition("{}.")[2] or norm.name.layer.rpartition(".")[2]
    for kind, dim in followed:
        below, equal = (size < size[dim]).sum(), (size == size[dim]).sum() - 1
        yield {
            "kind": kind,
            "dim": dim,
            "norm": name,
            "block": norm.name.block,
            "scale": float(scale[dim]),
            "typical": float(size.median()),
            "rank": float((below + equal / 2) / max(1, len(size) - 1)),
        }


def _headline(layers: pd.DataFrame, dims: pd.DataFrame, scales: pd.DataFrame, stream: _Stream) -> dict[str, Any]:
    """Numbers for the whole model; layers and shares are null if nothing is massive."""
    there = layers[layers["massive"] > 0]["layer"].tolist()
    total = int(stream.count.sum())
    peak = layers.iloc[int(layers["ratio"].argmax())]
    return {
        "massive_dims": torch.nonzero(stream.is_massive).flatten().tolist(),
        "massive_activations": total,
        "massive_layers": [min(there), max(there)] if there else None,
        "share_at_first_token": int(stream.first.sum()) / total if total else None,
        "largest": float(layers["largest"].max()),
        "largest_ratio": float(peak["ratio"]),
        "largest_ratio_layer": int(peak["layer"]),
        "largest_ratio_random": float(dims.loc[dims["kind"] == "random", "ratio"].max()),
        "scale_ranks": _ranks(scales),
    }


def _ranks(scales: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Norm within the blocks -> kind of dimension -> mean rank of its scale; chance gives 0.5."""
    means = scales[scales["block"].notna()].groupby(["norm", "kind"], sort=False)["rank"].mean()
    found: dict[str, dict[str, float]] = {}
    for row in means.reset_index().to_dict("records"):
        found.setdefault(row["norm"], {})[row["kind"]] = float(row["rank"])
    return found


def _summary(metrics: dict[str, Any]) -> str:
    found = metrics["massive_dims"]
    control = f"random dimensions reach {metrics['largest_ratio_random']:,.0f}"
    if not found:
        at = f"{metrics['largest_ratio']:,.0f} times the median in layer {metrics['largest_ratio_layer']}"
        return f"no massive activation: the largest is {at}, {control}"
    named = ", ".join(map(str, found[:6])) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    first, last = metrics["massive_layers"]
    where = f"in layers {first} to {last}, {100 * metrics['share_at_first_token']:.0f} % of them at the first token"
    size = f"up to {metrics['largest']:,.0f} and {metrics['largest_ratio']:,.0f} times the median"
    return (
        f"{len(found)} dimension{'s' * (len(found) > 1)} ({named}) with massive activations {where}, {size}; {control}"
    )
