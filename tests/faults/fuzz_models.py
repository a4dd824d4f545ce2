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
from tests.faults import mutators as m
from tests.faults.damage import Code
from tests.faults.fuzz_inputs import NAMES

WRAPPERS = ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model.", "model."]
HUGE = [10**5, 10**6, 10**9, 2**31, 2**63]


def _odd_name(rng: random.Random, name: str) -> str:
    stem, dot, last = name.rpartition(".")
    odd = rng.choice(m.STRINGS)
    options = [odd + name, name + odd, f"{stem}.{odd}.{last}", odd, name.upper(), name.title(), rng.choice(WRAPPERS) + name]
    options += [name.replace("model.", "model." + rng.choice(WRAPPERS), 1), name.replace(".", "/"), stem, "index.json"]
    options += [name.replace(".", ".."), name.replace("layers.1", f"layers.{rng.choice(['01', '-1', '9' * 30, '１'])}")]
    options += ["a" * rng.choice([200, 240, 243, 250, 255, 256, 1000, 5000]) + dot + last, "é" * 130 + name, "x." * 500]
    options += ["../" * rng.randrange(1, 6) + name, "é" * 60 + name]
    return rng.choice(options)


def change_names(rng: random.Random) -> str:
    """Other names for the tensors of one checkpoint, or of all three; some of them the same but for their case."""
    said, swaps = [], {}
    for _ in range(rng.choice([1, 1, 2, 3])):
        old = rng.choice(NAMES)
        swaps[old] = _odd_name(rng, old).replace(m.AWAY, os.environ["FUZZ_AWAY"]).encode("utf-8", "replace").decode()
        said.append(f"{old} = {swaps[old][:60]!a}")
    folders = rng.choice(["a", "a", "abc"])
    twin = rng.choice(["", "", "case", "canonical", "unicode"])
    for folder in folders:
        path = Path("names", folder, "model.safetensors")
        tensors = {swaps.get(key, key): tensor for key, tensor in load_file(path).items()}
        name = sorted(tensors)[len(said) % len(tensors)]
        twins = {"case": name.swapcase(), "canonical": WRAPPERS[len(said)] + name, "unicode": name + "\u212b"}
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
    options: list[Any] = [
        tensor.to("meta"), torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(tensor.shape), plain.mT[::2],
        plain.to_sparse(), plain.requires_grad_(), torch.nn.Parameter(tensor.clone()), tensor.to(torch.complex64),
        torch.quantize_per_tensor(tensor.clone(), 0.1, 0, torch.qint8), tensor.to(torch.bool), tensor.numpy().copy(), 5, None,
        "text", [tensor.clone()], {"weight": tensor.clone()}, tensor.half(), tensor.to(torch.float8_e4m3fn), tensor.double(),
        torch.empty(0), torch.tensor(1.0), tensor.to(torch.int64), Code(), Global(eval, "open('ran', 'w')"), Global(os.system, "touch ran"),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), torch.nn.Linear(2, 2), tensor.untyped_storage(),
        torch.full(tensor.shape, torch.nan), torch.zeros(4).as_strided((4, 4), (0, 1)), plain[None], plain.flatten(),
    ]  # fmt: skip
    return rng.choice(options)


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
        said = f"{name}: {str(type(state[name]))} {str(getattr(state[name], 'dtype', ''))} {str(getattr(state[name], 'device', ''))}"
    if do == "whole":
        options: list[Any] = [{"state_dict": state}, [state], list(state.values()), {}, {5: state[name]}, {(1,): state[name]},
                              OrderedDict(state), {"model": state, "epoch": 3}, state[name], None, Code(), {"": state[name]},
                              {name: state[name], "_metadata": {}}, {f"module.{k}": v for k, v in state.items()}]  # fmt: skip
        state = rng.choice(options)
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
    changed = {"gone": [], "twice": [members[at]] * 2, "cut off": [(name, content[: rng.randrange(len(content) + 1)])],
               "renamed": [(rng.choice(["../x", "/x", name + "x", "data.pkl"]), content)], "random": [(name, rng.randbytes(len(content)))],
               "flipped": [(name, _flipped(rng, content))], "compressed": [(name, content)]}[do]  # fmt: skip
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


CONFIG_KEYS: dict[str, list[Any]] = {
    "num_hidden_layers": [0, -1, *HUGE], "hidden_size": [0, -1, 7, *HUGE], "vocab_size": [0, 1, *HUGE], "intermediate_size": HUGE,
    "num_attention_heads": [0, -4, 3, *HUGE], "num_key_value_heads": [0, 3, *HUGE], "max_position_embeddings": [0, 1, 8, *HUGE],
    "head_dim": [0, -1, 5, *HUGE], "model_type": ["llama", "gpt2", "qwen2", "mamba", "bert", "t5", "gemma3", "mixtral", "gpt_oss", "", "x"],
    "architectures": [["X"], [], None, "LlamaForCausalLM"], "auto_map": [{"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Y"}],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {}, {"quant_method": "x"}],
    "torch_dtype": ["bfloat16", "float8_e4m3fn", "x", 5, "int8", "auto"], "dtype": ["x", "float16", 7], "hidden_act": ["x", "gelu", 5],
    "rope_parameters": [{"rope_type": "x"}, {"rope_type": "dynamic", "factor": "x"}, {"rope_type": "yarn", "factor": 1e30}, {}, 5],
    "rope_scaling": [{"type": "linear", "factor": 0}, {"type": "x"}, []], "layer_types": [["x"], ["sliding_attention"] * 2, []],
    "tie_word_embeddings": [False, True, "no"], "attention_bias": [True], "mlp_bias": [True], "sliding_window": [0, 1, "x"],
    "bos_token_id": [10**9, -1, [1, 2], "x", 5], "eos_token_id": [10**9, -1, [1, 2], "x"], "pad_token_id": [10**9, -1, 64, "x"],
    "attn_implementation": ["flash_attention_2", "x"], "_attn_implementation": ["flash_attention_2"], "use_cache": ["x"],
    "transformers_version": ["99", 5], "id2label": [{"0": "a"}, "x"], "num_labels": [10**9, -1], "text_config": [{}, [], "x", {"model_type": "llama"}],
    "vision_config": [{}, [], "x"], "is_encoder_decoder": [True], "tokenizer_class": ["X", "BertTokenizer"], "pretraining_tp": [0, 2],
    "image_token_id": [10**9, -1, "x"], "base_model_name_or_path": ["../lm", "/etc"], "_name_or_path": ["/etc", 5], "rms_norm_eps": ["x", 0, -1],
    "initializer_range": ["x", -1],
}  # fmt: skip


def change_config(rng: random.Random, path: Path) -> str:
    """A key that transformers knows, with a value that it does not expect, at the top or within."""
    content = json.loads(path.read_text())
    said = []
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice(sorted(CONFIG_KEYS))
        value = rng.choice([*CONFIG_KEYS[key], *CONFIG_KEYS[key], m.any_value(rng)])
        holders = [content, *(v for v in content.values() if isinstance(v, dict) and "hidden_size" in v)]
        rng.choice(holders)[key] = value
        said.append(f"{key} = {str(value)[:50]!a}")
    path.write_text(m.dump(content))
    return "; ".join(said)


def put_beside(rng: random.Random, folder: Path) -> str:
    """Another file in a model's folder that libraries look for."""
    name = rng.choice(["adapter_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
                       "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt",
                       "tokenizer_config.json", "spiece.model", "configuration_x.py", "modeling_x.py", "model.safetensors.index.json",
                       "reference.json", "nullspace.json", "config.json"])  # fmt: skip
    known = {
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": rng.choice(["lm-sharded", "/etc", "x/y", "names/a", 5])},
        "generation_config.json": {"eos_token_id": rng.choice(HUGE), "max_length": rng.choice([-1, 10**9, "x"])},
        "added_tokens.json": {"<new>": rng.choice([*HUGE, -1, 3, "x"])},
        "special_tokens_map.json": {"bos_token": rng.choice(["<new>", 5, {"content": "<b>"}])},
    }.get(name, m.any_value(rng))  # fmt: skip
    text = rng.choice([m.dump(known), m.dump(known), m.dump(m.any_value(rng)), "{% for i in range(10**9) %}{% endfor %}", "zz", ""])
    (folder / name).write_text(text.encode("utf-8", "replace").decode())
    return f"{name} put beside: {text[:60]!a}"


TOKENIZER_PARTS: dict[str, list[Any]] = {
    "truncation": [{"direction": "Right", "max_length": n, "strategy": "LongestFirst", "stride": s} for n in (0, 1, 4) for s in (0, 3)],
    "padding": [{"strategy": {"Fixed": n}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": i, "pad_type_id": 0, "pad_token": "<pad>"}
                for n in (0, 64, 10**8) for i in (0, 10**6)],
    "normalizer": [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}, {"type": "X"},
                   {"type": "Prepend", "prepend": "a" * 10**6}],
    "pre_tokenizer": [None, {"type": "Whitespace"}, {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}],
    "decoder": [{"type": "ByteLevel"}, {"type": "X"}],
    "post_processor": [{"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "<b>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "<b>", "type_id": 0}}], "special_tokens": {"<b>": {"id": "<b>", "ids": [i], "tokens": ["<b>"]}}} for i in (1, 70, 10**6)],
    "added_tokens": [[{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": n, "special": s}]
                     for i in (0, 5, 64, 10**6, 2**32, -1) for c in ("<b>", "a", "") for n, s in ((False, True), (True, False))],
    "version": ["9", 5],
}  # fmt: skip
TOKENIZER_KEYS: dict[str, list[Any]] = {
    "model_max_length": [0, -1, 1, 4, 1e30, "x", None, float("nan"), float("inf")], "tokenizer_class": ["X", "BertTokenizer", "LlamaTokenizer", "T5Tokenizer", 5],
    "chat_template": ["{{ 1/0 }}", "{% for i in range(10**9) %}a{% endfor %}", "{{ messages }}", "{{ raise_exception('x') }}", "{%", 5, [{"name": "a"}]],
    "bos_token": ["<new>", "a", "", 5, {"content": "<b>", "__type": "AddedToken"}], "eos_token": ["<new>", "a", None, 5], "pad_token": [None, "<new>", "a", 5],
    "unk_token": [None, "<new>"], "add_bos_token": [True, "x"], "add_eos_token": [True], "added_tokens_decoder": [{"1000000": {"content": "<b>"}}, {"x": {}}, {"-1": {"content": "b"}}, []],
    "auto_map": [{"AutoTokenizer": ["x.Y", None]}], "extra_special_tokens": [["<x>"], {"a": "<x>"}, 5], "padding_side": ["left", "x"], "backend": ["x", None],
    "split_special_tokens": [True], "clean_up_tokenization_spaces": ["x"],
}  # fmt: skip


def change_tokenizer(rng: random.Random, path: Path) -> str:
    """Parts of a tokenizer that are sound in form and say something strange."""
    content = json.loads(path.read_text())
    if path.name == "tokenizer.json" and rng.random() < 0.4:
        vocabulary = content["model"]["vocab"]
        token = rng.choice(sorted(vocabulary))
        vocabulary[token] = rng.choice([*m.NUMBERS, vocabulary[rng.choice(sorted(vocabulary))], 64, 10**6])
        path.write_text(m.dump(content))
        return f"the id of {token} = {str(vocabulary[token])[:40]}"
    parts = TOKENIZER_PARTS if path.name == "tokenizer.json" else TOKENIZER_KEYS
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
