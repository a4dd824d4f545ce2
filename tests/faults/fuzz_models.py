"""Mutators that know the parts of a model: names of weights, pickles, records, configs, tokenizers."""

import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.faults import fuzz_mutators as m
from tests.faults import fuzz_values as v
from tests.faults.damage import Code
from tests.faults.fuzz_inputs import NAMES


def _odd_name(rng: random.Random, name: str) -> str:
    stem, dot, last = name.rpartition(".")
    odd = rng.choice(v.STRINGS)
    options = [
        odd + name,
        name + odd,
        f"{stem}.{odd}.{last}",
        odd,
        name.upper(),
        name.title(),
        rng.choice(v.WRAPPERS) + name,
    ]
    options += [
        name.replace("model.", "model." + rng.choice(v.WRAPPERS), 1),
        name.replace(".", "/"),
        stem,
        "index.json",
    ]
    number = rng.choice(["01", "-1", "9" * 30, "\uff11"])
    options += [name.replace(".", ".."), name.replace("layers.1", f"layers.{number}")]
    options += ["a" * rng.choice([200, 240, 243, 250, 255, 256, 1000, 5000]) + dot + last, "é" * 130 + name, "x." * 500]
    options += ["../" * rng.randrange(1, 6) + name, "é" * 60 + name]
    return rng.choice(options)


def change_names(rng: random.Random) -> str:
    """Other names for the tensors of one checkpoint, or of all three; some of them the same but for their case."""
    said, swaps = [], {}
    for _ in range(rng.choice([1, 1, 2, 3])):
        old = rng.choice(NAMES)
        swaps[old] = _odd_name(rng, old).replace(v.AWAY, os.environ["FUZZ_AWAY"]).encode("utf-8", "replace").decode()
        said.append(f"{old} = {swaps[old][:60]!a}")
    folders = rng.choice(["a", "a", "abc"])
    twin = rng.choice(["", "", "case", "canonical", "unicode"])
    for folder in folders:
        path = Path("names", folder, "model.safetensors")
        tensors = {swaps.get(key, key): tensor for key, tensor in load_file(path).items()}
        name = sorted(tensors)[len(said) % len(tensors)]
        twins = {"case": name.swapcase(), "canonical": v.WRAPPERS[len(said)] + name, "unicode": name + "\u212b"}
        if twin:
            tensors[twins[twin]] = tensors[name].clone()
        if twin == "unicode":
            tensors[name + "\u00c5"] = tensors[name].clone()
        save_file(tensors, path, {"format": "pt"})
    return f"{folders}: {'; '.join(said)} {twin and f'and a twin by {twin}'}"


class Global:
    """A pickle that calls something harmless-looking."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._said = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._said


def _odd_tensor(rng: random.Random, tensor: torch.Tensor) -> Any:
    plain = tensor.clone()
    kinds = [torch.complex64, torch.bool, torch.half, torch.double, torch.int64, torch.float8_e4m3fn]
    wide = [torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(tensor.shape), torch.empty(0), torch.tensor(1.0)]
    views = [plain.mT[::2], torch.zeros(4).as_strided((4, 4), (0, 1)), plain[None], plain.flatten()]
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    quantised = torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)
    layouts = [tensor.to("meta"), plain.to_sparse(), nested, quantised, torch.full(tensor.shape, torch.nan)]
    objects = [
        5,
        None,
        "text",
        [plain],
        {"weight": plain},
        plain.numpy(),
        torch.nn.Linear(2, 2),
        plain.untyped_storage(),
    ]
    codes = [Code(), Global(eval, "open('ran', 'w')"), Global(os.system, "touch ran")]
    grown = [torch.nn.Parameter(plain.clone()), plain.clone().requires_grad_()]
    return rng.choice([*(tensor.to(kind) for kind in kinds), *wide, *views, *layouts, *objects, *codes, *grown])


def change_bin(rng: random.Random, path: Path) -> str:
    """Another thing pickled under the name of a weight file, or its zip archive damaged."""
    do = rng.choice(["tensor"] * 5 + ["whole", "legacy", "zip", "zip", "member", "member"])
    if do in ("zip", "member"):
        return _change_zip(rng, path, within=do == "member")
    state = torch.load(path)
    name = rng.choice(sorted(state))
    said = do
    if do == "tensor":
        state[name] = _odd_tensor(rng, state[name])
        said = f"{name}: {type(state[name])} {getattr(state[name], 'dtype', '')} {getattr(state[name], 'layout', '')}"
    if do == "whole":
        one = state[name]
        wrapped = [
            {"state_dict": state},
            [state],
            {"model": state, "epoch": 3},
            OrderedDict(state),
            list(state.values()),
        ]
        keyed = [
            {5: one},
            {(1,): one},
            {"": one},
            {name: one, "_metadata": {}},
            {f"module.{k}": t for k, t in state.items()},
        ]
        state = rng.choice([*wrapped, *keyed, {}, one, None, Code()])
        said = f"the whole: {type(state).__name__} {str(list(state)[:1] if isinstance(state, dict) else '')[:60]}"
    if rng.random() < 0.1:
        path.write_bytes(pickle.dumps(str(state)[:100]))
        return "a plain pickle"
    torch.save(state, path, _use_new_zipfile_serialization=do != "legacy" and rng.random() < 0.8)
    return said


def _change_zip(rng: random.Random, path: Path, *, within: bool) -> str:
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    do = rng.choice(["gone", "twice", "cut off", "renamed", "compressed", "random", "flipped"])
    if within:  # the pickle itself
        at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
        name, content = members[at]
        do = rng.choice(["cut off", "flipped", "random"])
    elsewhere = rng.choice(["../x", "/x", name + "x", "data.pkl"])
    changed = {
        "gone": [],
        "twice": [members[at]] * 2,
        "cut off": [(name, content[: rng.randrange(len(content) + 1)])],
        "renamed": [(elsewhere, content)],
        "random": [(name, rng.randbytes(len(content)))],
        "flipped": [(name, _flipped(rng, content))],
        "compressed": [(name, content)],
    }[do]
    members[at : at + 1] = changed
    how = zipfile.ZIP_DEFLATED if do == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return f"member {name} {do}"


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_config(rng: random.Random, path: Path) -> str:
    """A key that transformers knows, with a value that it does not expect, at the top or within."""
    content = json.loads(path.read_text())
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(sorted(v.CONFIG_KEYS))
        value = rng.choice([*v.CONFIG_KEYS[key], *v.CONFIG_KEYS[key], m.any_value(rng)])
        holders = [content, *(v for v in content.values() if isinstance(v, dict) and "hidden_size" in v)]
        rng.choice(holders)[key] = value
        said.append(f"{key} = {str(value)[:50]!a}")
    path.write_text(m.dump(content))
    return "; ".join(said)


def put_beside(rng: random.Random, folder: Path) -> str:
    """Another file in a model's folder that libraries look for."""
    name = rng.choice([*v.BESIDE, "config.json"])
    elsewhere = rng.choice(["lm-sharded", "/etc", "x/y", "names/a", 5])
    known = {
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": elsewhere},
        "generation_config.json": {"eos_token_id": rng.choice(v.HUGE), "max_length": rng.choice([-1, 10**9, "x"])},
        "added_tokens.json": {"<new>": rng.choice([*v.HUGE, -1, 3, "x"])},
        "special_tokens_map.json": {"bos_token": rng.choice(["<new>", 5, {"content": "<b>"}])},
    }.get(name, m.any_value(rng))
    endless = "{% for i in range(10**9) %}{% endfor %}"
    text = rng.choice([m.dump(known), m.dump(known), m.dump(m.any_value(rng)), endless, "zz", ""])
    (folder / name).write_text(text.encode("utf-8", "replace").decode())
    return f"{name} put beside: {text[:60]!a}"


def change_tokenizer(rng: random.Random, path: Path) -> str:
    """Parts of a tokenizer that are sound in form and say something strange."""
    content = json.loads(path.read_text())
    if path.name == "tokenizer.json" and rng.random() < 0.4:
        vocabulary = content["model"]["vocab"]
        token = rng.choice(sorted(vocabulary))
        vocabulary[token] = rng.choice([*v.NUMBERS, vocabulary[rng.choice(sorted(vocabulary))], 64, 10**6])
        path.write_text(m.dump(content))
        return f"the id of {token} = {str(vocabulary[token])[:40]}"
    parts = v.TOKENIZER_PARTS if path.name == "tokenizer.json" else v.TOKENIZER_KEYS
    key = rng.choice(sorted(parts))
    content[key] = rng.choice(parts[key])
    path.write_text(m.dump(content))
    return f"{key} = {str(content[key])[:100]!a}"


def change_record(rng: random.Random, path: Path) -> str:
    """The JSON that our own files carry as the metadata of their tensors."""
    tensors, metadata = load_file(path), m.read_metadata(path)
    key = next(key for key in metadata if metadata[key].startswith("{"))
    record = json.loads(metadata[key])
    said = m.change_value(rng, record)
    metadata[key] = m.dump(record)
    save_file(tensors, path, metadata)
    return f"{key}: {said}"
