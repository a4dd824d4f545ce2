"""Ways to break a file of the workshop; each gives a function that breaks the one in the working directory."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[], None]


def put(path: str, content: bytes | str) -> Damage:
    """The content of a file, its folder made where there is none."""

    def damage() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def cut(path: str, keep: float = 0.5) -> Damage:
    """Truncates a file."""

    def damage() -> None:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: int(len(content) * keep)])

    return damage


def remove(path: str) -> Damage:
    """Removes a file or a folder."""

    def damage() -> None:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()

    return damage


def empty(path: str) -> Damage:
    """A folder with nothing in it."""

    def damage() -> None:
        remove(path)() if Path(path).exists() else None
        Path(path).mkdir(parents=True)

    return damage


def set_json(path: str, **changes: Any) -> Damage:
    """Other values of keys at the top of a JSON file; None takes a key out."""

    def damage() -> None:
        content = json.loads(Path(path).read_text())
        kept = {key: value for key, value in content.items() if changes.get(key, ...) is not None}
        Path(path).write_text(json.dumps(kept | {key: v for key, v in changes.items() if v is not None}))

    return damage


def set_tensor(path: str, key: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Damage:
    """Another tensor under the first name that ends in `key`; None takes it out."""

    def damage() -> None:
        tensors = load_file(path)
        name = next(name for name in tensors if name.endswith(key))
        old = tensors.pop(name)
        save_file(tensors if change is None else tensors | {name: change(old).contiguous()}, path, {"format": "pt"})

    return damage


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = torch.nan
    return tensor


def header(path: str, entries: Mapping[str, Any] | bytes, length: int | None = None, data: int = 64) -> Damage:
    """A safetensors file that says of itself what it likes."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return put(path, struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))


def entry(dtype: str = "F32", shape: Any = (4, 4), offsets: Any = (0, 64)) -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def torch_file(path: str, content: Any) -> Damage:
    """A `.bin`, whatever is in it, in the place of the safetensors file beside it."""

    def damage() -> None:
        buffer = BytesIO()
        torch.save(content, buffer)
        (Path(path).parent / "model.safetensors").unlink()
        Path(path).write_bytes(buffer.getvalue())

    return damage


def table(path: str, rows: list[Mapping[str, Any]]) -> Damage:
    """A parquet file."""

    def damage() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(path, index=False)

    return damage


def both(*damages: Damage) -> Damage:
    """One after the other."""

    def damage() -> None:
        for one in damages:
            one()

    return damage


def replaced(path: str, old: str, new: str) -> Damage:
    """One piece of text for another."""

    def damage() -> None:
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new, 1))

    return damage


class Code:
    """A pickle that would make a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)
