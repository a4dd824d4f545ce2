"""Adapters built on tiny models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from subspacelab.checkpoints import resolve_reference
from subspacelab.nullspace.building import Built, build_adapter
from subspacelab.nullspace.config import BuildSettings

RANK = 5


def settings_of(bases: Path, **changes: Any) -> BuildSettings:
    plain = BuildSettings(str(bases / "text.txt"), calib_loader_size=40, seq_len=16, batch_size=8, device="cpu")
    return replace(plain, **changes)


def make(bases: Path, folder: Path, method: str = "lora_null_v2", family: str = "llama", **changes: Any) -> Built:
    own = {key: changes.pop(key) for key in ("rank", "seed") if key in changes}
    source = resolve_reference(str(bases / family))
    return build_adapter(
        source, folder, method=method, **({"rank": RANK, "seed": 7} | own), settings=settings_of(bases, **changes)
    )
