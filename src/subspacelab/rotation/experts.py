"""Fused experts: which tensors hold all experts of a layer, and in which layout each expert is stored."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from subspacelab.checkpoints import Checkpoint, TensorInfo, num_experts

STACKED = re.compile(r"(?:.*\.)?ffn\.experts\.mlp\.(?:w1|v1|w2)")
"""Names of DBRX's tensors [experts * a, b]; config.json gives the number of experts."""
READS_HIDDEN = frozenset({"gate_up_proj", "gate_proj", "up_proj", "input_linear", "w1", "w3", "w13", "v1"})
"""Names of projections from the hidden states: their hidden axis is the input."""
WRITES_HIDDEN = frozenset({"down_proj", "output_linear", "w2"})
"""Names of projections to the hidden states: their hidden axis is the output."""


@dataclass(frozen=True)
class Fused:
    """A tensor that holds one matrix for each expert of a layer."""

    count: int
    """Number of experts."""
    stored: tuple[int, int]
    """Stored shape of an expert."""
    transposed: bool | None
    """Whether the stored layout is [in, out]; None if neither names nor sizes determine it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an expert as a weight, [out, in]; the stored shape if the layout is unknown."""
        return self.stored[::-1] if self.transposed else self.stored


def find_fused(checkpoint: Checkpoint) -> dict[str, Fused]:
    """Key -> experts, for the fused tensors of a checkpoint; uses only headers and config.json.

    Name and hidden size determine the layout: `gate_up_proj` [in, out] of Llama 4 and gpt-oss has the hidden size
    first, [out, in] of a Mixtral in memory has it second; `down_proj` is the other way round. Square experts are taken
    like the others of the checkpoint.
    """
    infos = [checkpoint.info(name) for name in checkpoint.names if not checkpoint.is_scale(name)]
    counts = {info.name: (info, _count(info, checkpoint.config)) for info in infos}
    stored = {name: (count, _stored(info, count)) for name, (info, count) in counts.items() if count is not None}
    hidden = _hidden_size(checkpoint.config) or _common_size({name: shape for name, (_, shape) in stored.items()})
    fused = {name: Fused(count, shape, _transposed(name, shape, hidden)) for name, (count, shape) in stored.items()}
    told = {expert.transposed for expert in fused.values()} - {None}
    if len(told) != 1:
        return fused
    return {name: replace(e, transposed=told.copy().pop()) if e.transposed is None else e for name, e in fused.items()}


def _count(info: TensorInfo, config: Mapping[str, Any]) -> int | None:
    """Number of experts in a tensor; None if it is not fused."""
    count = num_experts(info.name, info.shape)
    if count is None and STACKED.fullmatch(info.name) and len(info.shape) == 2:
        said = config.get("ffn_config")
        count = said.get("moe_num_experts") if isinstance(said, Mapping) else None
        count = count if isinstance(count, int) and count > 0 and info.shape[0] % count == 0 else None
    return count


def _stored(info: TensorInfo, count: int) -> tuple[int, int]:
    *rest, last = info.shape
    return (rest[1], last) if len(rest) > 1 else (rest[0] // count, last)


def _role(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _transposed(name: str, shape: tuple[int, int], hidden: int | None) -> bool | None:
    role = _role(name)
    if shape[0] == shape[1] or hidden not in shape or role not in READS_HIDDEN | WRITES_HIDDEN:
        return None
    return (shape[0] == hidden) == (role in READS_HIDDEN)


def _hidden_size(config: Mapping[str, Any]) -> int | None:
    """The hidden size of the language model in config.json."""
    for part in (config.get("text_config"), config):
        for key in ("hidden_size", "d_model"):
            if isinstance(part, Mapping) and isinstance(part.get(key), int):
                return int(part[key])
    return None


def _common_size(shapes: Mapping[str, tuple[int, int]]) -> int | None:
    """The only size that all projections from and to the hidden states share; None if there is none, or two."""
    known: Iterable[set[int]] = (
        set(shape) for name, shape in shapes.items() if _role(name) in READS_HIDDEN | WRITES_HIDDEN
    )
    common = set.intersection(*found) if (found := list(known)) else set()
    return common.pop() if len(common) == 1 else None
