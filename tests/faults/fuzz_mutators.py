"""Seeded ways to damage a file with an eye to its structure; each says in words what it did.

The working directory is that of a command; a mutator is given a random generator and a path below it.
"""

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.faults import fuzz_values as v

Mutator = Callable[[random.Random, Path], str]


def any_value(rng: random.Random) -> Any:
    """Any JSON value, the odd ones as likely as the plain ones."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(v.NUMBERS)
    if kind < 4:
        return rng.choice(v.STRINGS)
    return copy.deepcopy(rng.choice(v.OTHERS))


def near_value(rng: random.Random, old: Any) -> Any:
    """A value of the same type beside the old one, or the same thing in another type."""
    if isinstance(old, bool) or old is None:
        return rng.choice([not old, 0, 1, str(old).lower()])
    if isinstance(old, int | float):
        numbers = [old + 1, old - 1, -old, old * 2, old * 1000, old * 10**9, old / 2, float(old)]
        return rng.choice([*numbers, str(old), [old]])
    if isinstance(old, str):
        odd = rng.choice(v.STRINGS)
        return rng.choice([old + odd, odd + old, old[:-1], old.upper(), old * 2, [old], {"a": old}, old.encode().hex()])
    if isinstance(old, list):
        numbered = {str(i): entry for i, entry in enumerate(old)}
        return rng.choice([old[:-1], old[1:], old * 2, old[::-1], old + [any_value(rng)], numbered])
    return rng.choice([list(old), list(old.values()), list(old.items()), str(old)[:200]])


def _walk(rng: random.Random, value: Any) -> tuple[Any, Any, str]:
    """A container, one of its keys, and the path of both in words."""
    path = ""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        path += f".{key}"
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner) or rng.random() < 0.3:
            return value, key, path[1:][:80]
        value = inner


def change_value(rng: random.Random, value: Any) -> str:
    """One change within a JSON value."""
    if not isinstance(value, dict | list) or not value:
        return "nothing to change"
    holder, key, path = _walk(rng, value)
    do = rng.choices(["drop", "any", "near", "rename", "add", "borrow"], [2, 5, 5, 1, 1, 1])[0]
    old = holder[key]
    if do == "drop":
        del holder[key]
        return f"{path} dropped"
    if do == "rename" and isinstance(holder, dict):
        new = near_value(rng, str(key))
        holder[str(new)] = holder.pop(key)
        return f"{path} renamed to {str(new)[:40]!a}"
    if do == "add" and isinstance(holder, dict):
        new = rng.choice(v.STRINGS)
        holder[new] = any_value(rng)
        return f"a key {new[:40]!a} beside {path}"
    if do == "borrow":
        other, its_key, its_path = _walk(rng, value)
        holder[key] = json.loads(json.dumps(other[its_key]))
        return f"{path} = that of {its_path}"
    holder[key] = near_value(rng, old) if do == "near" else any_value(rng)
    return f"{path} = {str(holder[key])[:60]!a}"


def dump(value: Any) -> str:
    """JSON, and what JSON cannot be made to say."""
    deep = "[" * 100_000 + "]" * 100_000
    text = json.dumps(value).replace(f'"{v.DEEP}"', deep).replace(f'"{v.LONG_INTEGER}"', "9" * 5000)
    return text.replace(v.AWAY, os.environ.get("FUZZ_AWAY", v.AWAY))


def change_json(rng: random.Random, path: Path) -> str:
    """One to three changes within a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    said = [change_value(rng, value) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    path.write_text(dump(value))
    return "; ".join(said)


def change_json_text(rng: random.Random, path: Path) -> str:
    """The same JSON in another dress, or none at all."""
    text = path.read_text(encoding="utf-8")
    key = rng.choice([*json.loads(text)] or ["a"]) if text.lstrip().startswith("{") else "a"
    what, content = rng.choice(
        [
            ("a byte order mark", "\ufeff" + text),
            ("UTF-16", text.encode("utf-16")),
            ("cut off", text[: rng.randrange(len(text) + 1)]),
            (f"the key {key!a} twice", text.rstrip()[:-1] + f", {json.dumps(key)}: {dump(any_value(rng))}}}"),
            ("another value altogether", dump(any_value(rng))),
            ("in a list", f"[{text}]"),
            ("twice", text + text),
            ("a bad byte", text.encode() + b"\xff"),
            ("a NUL", text + "\0"),
            ("a comma too many", text.rstrip()[:-1] + ",}"),
            ("CRLF", text.replace("\n", "\r\n")),
        ]
    )
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return what


def change_bytes(rng: random.Random, path: Path) -> str:
    """Bytes cut off, zeroed, flipped, put in, taken out."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    length = min(rng.choice([1, 4, 8, 64, 1024]), max(len(content) - at, 0))
    do = rng.choice(["cut off", "zeroed", "flipped", "appended", "put in", "taken out", "random"])
    if do == "cut off":
        del content[at:]
    elif do == "zeroed":
        content[at : at + length] = bytes(length)
    elif do == "flipped":
        for i in range(at, at + length):
            content[i] ^= 1 << rng.randrange(8)
    elif do == "appended":
        content += rng.randbytes(rng.choice([1, 8, 5000]))
    elif do == "put in":
        content[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
    elif do == "taken out":
        del content[at : at + length]
    else:
        content = bytearray(rng.randbytes(len(content)))
    path.write_bytes(content)
    return f"{do} at byte {at} ({length})"


def change_kind(rng: random.Random, path: Path) -> str:
    """Something else under the name of a file."""
    do = rng.choice(v.KINDS)
    if do == "unreadable":
        path.chmod(0)  # root reads on
        return do
    kept = path.with_name("kept-elsewhere")
    if do == "a link to a good file":
        shutil.move(path, kept)
        path.symlink_to(kept.name)
        return do
    path.unlink()
    if do == "empty":
        path.touch()
    elif do == "a folder":
        path.mkdir()
    elif do == "a pipe":
        os.mkfifo(path)
    elif do.startswith("/dev/"):
        path.symlink_to(do)
    elif do == "a dangling link":
        path.symlink_to("nowhere")
    elif do == "a link to itself":
        path.symlink_to(path.name)
    elif do == "a git-LFS pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return do


def change_header(rng: random.Random, path: Path) -> str:
    """A safetensors header that says something else of the same bytes."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"] or ["none"])
    entry = header.get(name, {})
    size = len(data)
    do = rng.randrange(10)
    if do == 0:
        entry["dtype"] = rng.choice(v.DTYPES)
        said = f"{name}: dtype {entry['dtype']!r}"
    elif do == 1:
        shape = entry["shape"]
        changed = [shape[::-1], [*shape, 1], shape[:-1], [0, *shape], [-n for n in shape], [True, *shape[1:]], [shape]]
        typed = [[n * 1.0 for n in shape], [str(n) for n in shape], None, [], [2**62, 2**62], [2**40] * 3, [1] * 70]
        entry["shape"] = rng.choice(changed + typed)
        said = f"{name}: shape {str(entry['shape'])[:60]}"
    elif do == 2:
        first, last = entry["data_offsets"]
        moved = [[last, first], [first, first], [first + 4, last + 4], [first - 4, last - 4], [-4, last - first - 4]]
        beyond = [[size, size + last - first], [first, 2**63], [first, 2**64], [0, size], [first, last - 1]]
        typed = [[first * 1.0, last], [str(first), last], None, [first, last, last], [first], [None, last]]
        entry["data_offsets"] = rng.choice(moved + beyond + typed)
        said = f"{name}: offsets {entry['data_offsets']}"
    elif do == 3:
        other = rng.choice([key for key in header if key != "__metadata__"] or [name])
        entry["data_offsets"] = header[other]["data_offsets"]
        said = f"{name} lies on {other}"
    elif do == 4:
        metadata = [any_value(rng), {"format": any_value(rng)}, {rng.choice(v.STRINGS): "x" * 10**6}]
        header["__metadata__"] = rng.choice(metadata)
        said = f"metadata {str(header['__metadata__'])[:60]!a}"
    elif do == 5:
        header = {**header, rng.choice(v.STRINGS): any_value(rng)}
        said = "an entry that is none"
    elif do == 6:
        data = data + bytes(rng.choice([1, 64])) if rng.random() < 0.5 else data[: -rng.choice([1, 64])]
        said = f"{len(data) - size:+} bytes of data"
    else:
        said = change_value(rng, header)
    text = dump(header).encode("utf-8", "surrogatepass")
    claimed = len(text)
    if do == 7:
        claimed = rng.choice([0, 1, len(text) - 1, len(text) + 1, 2**32, 2**63, 2**64 - 1, 100_000_001])
        said += f"; length {claimed}"
    if do == 8:
        text = rng.choice([b" ", b"\n", b"\0", b"\xef\xbb\xbf"]) + text
        claimed, said = len(text), f"{said}; the header begins with {text[:1]!r}"
    path.write_bytes(struct.pack("<Q", claimed) + text + data)
    return said


def change_tensors(rng: random.Random, path: Path) -> str:
    """A sound safetensors file with other tensors in it."""
    tensors, metadata = load_file(path), read_metadata(path)
    name = rng.choice(sorted(tensors))
    do, changed = changed_tensor(rng, tensors.pop(name))
    if changed is not None:
        new = name if do != "renamed" else str(near_value(rng, name))[:250].encode("utf-8", "replace").decode()
        tensors[new] = changed.clone().contiguous()
    save_file(tensors, path, metadata)
    return f"{name}: {do}"


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return header.get("__metadata__") or {}


def changed_tensor(rng: random.Random, tensor: torch.Tensor) -> tuple[str, torch.Tensor | None]:
    """What was done to a tensor, and what came of it; None where it was taken out."""
    numbers = tensor.clone()
    do = rng.choice(v.TENSOR_CHANGES)
    if do == "gone":
        return do, None
    if do in v.TENSOR_TYPES:
        return do, numbers.to(getattr(torch, do))
    if do in ("NaN", "infinity") and numbers.is_floating_point() and numbers.numel():
        numbers.view(-1)[rng.randrange(numbers.numel())] = torch.nan if do == "NaN" else torch.inf
    made = {
        "zeros": lambda t: torch.zeros_like(t),
        "constant": lambda t: torch.ones_like(t),
        "huge": lambda t: t * 1e30 if t.is_floating_point() else t,
        "tiny": lambda t: t * 1e-42 if t.is_floating_point() else t,
        "turned": lambda t: t.flip(-1).mT if t.ndim > 1 else t,
        "flat": lambda t: t.flatten(),
        "shorter": lambda t: t[:-1] if t.ndim else t,
        "longer": lambda t: torch.cat([t, t]) if t.ndim else t,
        "scalar": lambda t: t.flatten()[0] if t.numel() else t,
        "empty": lambda t: t[:0] if t.ndim else t,
        "one axis more": lambda t: t[None],
        "moved": lambda t: t + t.new_tensor(1),
    }
    return do, made.get(do, lambda t: t)(numbers)


def one_of(*choices: tuple[float, Mutator]) -> Mutator:
    """One of several mutators, by weight."""

    def mutate(rng: random.Random, path: Path) -> str:
        return rng.choices([m for _, m in choices], [w for w, _ in choices])[0](rng, path)

    return mutate


any_json = one_of((7, change_json), (2, change_json_text), (1, change_bytes), (0.7, change_kind))
any_safetensors = one_of((5, change_header), (3, change_tensors), (1.5, change_bytes), (0.7, change_kind))
any_bytes = one_of((4, change_bytes), (1, change_kind))


UNDOABLE = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, OSError, StopIteration)
"""What a mutator raises when the thing that it drew cannot be done to the value at hand."""


def in_files(*choices: tuple[float, str, Mutator]) -> Callable[[random.Random], str]:
    """Damages one file of those that a pattern finds; the patterns are drawn by weight."""

    def mutate(rng: random.Random) -> str:
        weights = [w for w, _, _ in choices]
        for _ in range(20):
            _, pattern, mutator = rng.choices(choices, weights)[0]
            path = rng.choice(sorted(Path().glob(pattern)))
            try:
                return f"{path}: {mutator(rng, path)}"
            except (
                ValueError,
                TypeError,
                KeyError,
                IndexError,
                OverflowError,
                RuntimeError,
                AttributeError,
                OSError,
                StopIteration,
            ):
                continue  # what was drawn cannot be done to this value
        return "nothing"

    return mutate
