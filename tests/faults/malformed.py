"""What can be wrong with the inputs of every command: one row a fault, for test_malformed_inputs.py.

`python -m tests.faults.malformed` counts the rows of each command, for docs/reliability.md.
"""
# ruff: noqa: E501
# fmt: off

import json
from collections import Counter

import torch
from tests.faults import damage as d
from tests.faults.workshop import COMMANDS

Row = tuple[str, str, d.Damage | None, str, str]
"""Command, what is wrong, how it is made so, words added, what the line says (parts in order, ` .. ` between)."""

MODEL, CONFIG = "checkpoints/base/model.safetensors", "checkpoints/base/config.json"
INDEX, BIN = "checkpoints/base/model.safetensors.index.json", "checkpoints/base/pytorch_model.bin"
QKV, EMBED = "blocks.1.attn.qkv.weight", "embed_tokens.weight"
LM, LM_CONFIG = "lm/model.safetensors", "lm/config.json"
FACTORS = "svd/base/visual.blocks.0.attn.qkv.weight.safetensors"
PARQUET, JSONL = "images/x.parquet", "images/x.jsonl"
ROW = {"question": "q", "answer": "a", "dataset_id": "d", "bbox": [1.0, 2.0, 3.0, 4.0]}
USAGE = "Try 'subspacelab"


def _index(shard: str) -> d.Damage:
    return d.both(d.remove(MODEL), d.put(INDEX, json.dumps({"weight_map": {"a.weight": shard}})))


def _lies(**entry: object) -> d.Damage:
    """A weight file of 64 bytes whose header says something else."""
    return d.header(MODEL, {"model.embed_tokens.weight": d.entry(**entry)})  # type: ignore[arg-type]


WEIGHTS: list[tuple[str, d.Damage, str]] = [
    ("cut off", d.cut(MODEL), "model.safetensors: truncated .. ; use another copy"),
    ("more bytes claimed", _lies(shape=(400, 400), offsets=(0, 640000)), "model.safetensors: truncated .. ; use another"),
    ("header of 2^60 bytes", d.header(MODEL, {}, length=1 << 60), f"a header of {1 << 60} bytes .. ; use another"),
    ("another size than its shape", _lies(shape=(5, 5)), "embed_tokens.weight of shape [5, 5] .. ; use another"),
    ("negative shape", _lies(shape=(-4, -4)), "embed_tokens.weight .. greater than or equal to 0 .. ; use another"),
    ("huge shape", _lies(shape=(1 << 62, 1 << 62)), "of shape [4611686018427387904, .. ; use another"),
    ("shape of text", _lies(shape="44"), "shape.0: Input should be a valid integer .. ; use another"),
    ("dtype unknown", _lies(dtype="zz"), "damaged safetensors header .. ; use another"),
    ("overlapping offsets", d.header(MODEL, {"a": d.entry(), "b": d.entry(offsets=(32, 96))}, data=96), "b does not begin"),
    ("header is no JSON", d.header(MODEL, b"not json"), "damaged safetensors header .. ; use another"),
    ("header nested 200,000 deep", d.header(MODEL, b"[" * 200_000), "damaged safetensors header .. ; use another"),
    ("git-LFS pointer", d.put(MODEL, "version https://git-lfs.github.com/spec/v1\n"), "a git-LFS pointer .. git lfs pull"),
    ("empty file", d.put(MODEL, ""), "empty file; download it again"),
    ("index leads out", _index("../x.safetensors"), "index.json .. '../x.safetensors', not a file name"),
    ("index leads to /etc/passwd", _index("/etc/passwd"), "index.json .. '/etc/passwd', not a file name"),
    ("index names a missing shard", _index("m.safetensors"), "m.safetensors: missing shard .. download"),
    ("index is no JSON", d.both(d.remove(MODEL), d.put(INDEX, "{")), "index.json: not valid JSON .. ; restore"),
    ("index is not UTF-8", d.both(d.remove(MODEL), d.put(INDEX, b"\xff\xfe")), "index.json: not valid JSON .. ; restore"),
    ("pickle that runs code", d.torch_file(BIN, {"a": d.Code()}), "more than tensors .. could run code; use the safetensors"),
    ("pickle of a list", d.torch_file(BIN, {"a": [1]}), "entry 'a' is a list, not a tensor; save the state_dict"),
    ("no weights", d.empty("checkpoints/base"), "checkpoints/base: no weights here; expected one of model.safetensors"),
    ("config is no JSON", d.put(CONFIG, "{"), "config.json: not valid JSON .. ; restore"),
    ("config is a list", d.put(CONFIG, "[]"), "config.json: not the config of a model .. ; restore"),
    ("config is not UTF-8", d.put(CONFIG, b"\xff"), "config.json: not valid JSON .. ; restore"),
]
"""A checkpoint that is broken, for the commands that read one by its keys."""

REFERENCES = [
    ("no such folder", "nowhere", "nowhere: no such checkpoint; give a local folder or file, org/name"),
    ("hub name of three parts", "a/b/c", "a/b/c: no such checkpoint; give"),
    ("hub name without its revision", "org/name@", "org/name@: no such checkpoint; give"),
    ("pipeline that has not run", "pipeline:nosuch", "pipeline:nosuch: not built yet .. ; run `dvc repro checkpoint_nosuch`"),
    ("pipeline of no name", "demo:../x", "demo:../x: not a checkpoint of the pipeline; write pipeline:NAME"),
]

DECOMPOSE: list[Row] = [
    ("decompose", "NaN", d.set_tensor(MODEL, QKV, d.nan), "", f"{QKV}: 1 NaN .. download or train it again"),
    ("decompose", "integer codes", d.set_tensor(MODEL, QKV, torch.Tensor.char), "", f"{QKV}: quantised .. use the unquantised"),
    ("decompose", "text for a weight file", None, "--model-id text.txt", "text.txt: unknown weight format '.txt'; known"),
    ("decompose", "pointer to a number", d.both(d.empty("checkpoints/base"), d.put(
        "checkpoints/base/reference.json", '{"reference": 5, "revision": null}')), "", "'reference' must be text .. build it"),
    ("decompose", "rank 0", None, "--rank 0", "decompose.rank: must be greater than or equal to 1, got 0"),
    ("decompose", "rank too large", None, "--rank 4000", "rank=4000 .. allows 1 to 32; choose"),
    ("decompose", "rank no number", None, "--rank many", f"'--rank' .. {USAGE}"),
    ("decompose", "unknown method", None, "--method magic", "decompose.method: must be 'auto', 'gram' or 'lapack', got 'magic'"),
    ("decompose", "unknown device", None, "--device tpu", "device='tpu': allowed are"),
    ("decompose", "pattern that is none", None, "--include (", "include='(': not a regular expression"),
    ("decompose", "pattern that finds nothing", None, "--include nosuch", "no weight is left .. there are 56 tensors, such as"),
    ("decompose", "a file where the folder goes", d.put("file", ""), "--output-dir file", "file: File exists; give another"),
]

COMPARE: list[Row] = [
    ("compare-rotations", what, damage, words, said)
    for what, damage, words, said in [
        ("a file for a folder", None, "--base text.txt", "text.txt is not a decomposed checkpoint .. decompose' first"),
        ("no index", d.remove("svd/base/index.json"), "", "svd/base is not a decomposed .. decompose' first"),
        ("index is no JSON", d.put("svd/base/index.json", "{"), "", "svd/base/index.json: not valid JSON .. ; restore"),
        ("index is not UTF-8", d.put("svd/base/index.json", b"\xff"), "", "svd/base/index.json: not valid JSON .. ; restore"),
        ("index without its keys", d.put("svd/base/index.json", '{"weights": {"a": {}}}'), "", "not the index .. again"),
        ("of different checkpoints", d.set_json("svd/base/index.json", weights={}), "", "svd/base, .. share no weight"),
        ("factors cut off", d.cut(FACTORS), "", f"{FACTORS}: factors of .. decompose' again"),
        ("factors gone", d.remove(FACTORS), "", f"{FACTORS}: factors of .. decompose' again"),
        ("factors without U", d.set_tensor(FACTORS, "U", None), "", f"{FACTORS}: .. tensor U .. decompose' again"),
        ("factors of another shape", d.set_tensor(FACTORS, "U", lambda t: t[:5]), "", "U is [5, 8] .. decompose' again"),
        ("NaN among the factors", d.set_tensor(FACTORS, "S", d.nan), "", f"{FACTORS}: .. S: 1 NaN .. decompose' again"),
        ("rank 0", None, "--rank 0", "compare.k: must be greater than or equal to 1, got 0"),
        ("group without a pattern", None, "--module qkv", "--module 'qkv': expected NAME=PATTERN, such as"),
        ("group that finds nothing", None, "--module a=nosuch", "pattern 'nosuch' matches no weight .. there are"),
        ("a file where the folder goes", d.put("file", ""), "--output-dir file", "file: File exists; give another"),
        ("files of others", d.put("mine/metrics.json", ""), "--output-dir mine", "mine/metrics.json: not written by this .. give"),
        ("another comparison there", None, "--rank 3", "curves.csv: holds a result of rank=4, .. rank=3; give another"),
        ("a place within an input", None, "--output-dir svd/base/x", "svd/base/x: is, or lies within, the input svd/base"),
        ("a group twice", None, "--module a=x --module a=y", "'a' is given twice; join its patterns"),
    ]
]

CACHE: list[Row] = [
    ("cache", what, damage, words, said)
    for what, damage, words, said in [
        ("weight missing", d.set_tensor(MODEL, QKV, None), "", f"visual.{QKV} is missing"),
        ("weight of another shape", d.set_tensor(MODEL, QKV, lambda t: t[:5]), "", f"{QKV}: shape [5, 32], config.json says"),
        ("NaN", d.set_tensor(MODEL, QKV, d.nan), "", f"{QKV}: 1 NaN .. download or train it again"),
        ("no config", d.remove(CONFIG), "", "config.json says 'no model_type'; features need"),
        ("config of another family", d.set_json(CONFIG, model_type="llama"), "", "config.json says 'llama'; features need"),
        ("config of no tower", d.set_json(CONFIG, vision_config="x"), "", "config.json describes no vision tower .. restore"),
        ("config of no heads", d.set_json(CONFIG, vision_config={"num_heads": 0}), "", "num_heads is 0, not at .. restore"),
        ("processor is a list", d.put("checkpoints/base/preprocessor_config.json", "[]"), "", "holds a list .. restore"),
        ("parquet without pictures", d.table(PARQUET, [{"question": "q"}]), "", "x.parquet: columns ['image', .. missing"),
        ("parquet of paths out of it", d.table(PARQUET, [ROW | {"image": {"bytes": None, "path": "../text.txt"}}]), "",
         "x.parquet: row 1 ('d'): image .. correct or drop"),
        ("parquet of absolute paths", d.table(PARQUET, [ROW | {"image": {"bytes": None, "path": "/etc/passwd"}}]), "",
         "x.parquet: row 1 ('d'): image .. correct or drop"),
        ("parquet of numbers", d.table(PARQUET, [ROW | {"image": 5}]), "", "x.parquet: row 1 ('d'): image .. correct or drop"),
        ("parquet of broken pictures", d.table(PARQUET, [ROW | {"image": {"bytes": b"zz", "path": "a.png"}}]), "",
         "1 of 1 pictures cannot be read (first: d) .. restore"),
        ("parquet of half a box", d.table(PARQUET, [ROW | {"bbox": [1.0], "image": {"bytes": b"z", "path": "a"}}]), "",
         "x.parquet: row 1 ('d'): bbox .. correct or drop"),
        ("parquet that is none", d.put(PARQUET, b"zz"), "", "x.parquet: not a parquet file .. restore"),
        ("JSONL with a broken line", d.put(JSONL, '{"image": "000.png"}\n{"image'), f"--images {JSONL}", "line 2: .. correct"),
        ("JSONL of paths out of it", d.put(JSONL, '{"image": "../text.txt"}'), f"--images {JSONL}", "line 1: .. outside"),
        ("JSONL of absolute paths", d.put(JSONL, '{"image": "/etc/passwd"}'), f"--images {JSONL}", "line 1: .. outside"),
        ("JSONL of a name with NUL", d.put(JSONL, '{"image": "a\\u0000"}'), f"--images {JSONL}", "line 1: .. outside"),
        ("JSONL that is not UTF-8", d.put(JSONL, b"\xff"), f"--images {JSONL}", "x.jsonl: not UTF-8 text .. convert"),
        ("folder without a picture", d.empty("images"), "", "images: neither parquet files nor pictures (.png"),
        ("picture that is none", d.put("images/000.png", "zz"), "", "1 of 3 pictures cannot be read (first: 000.png) .. restore"),
        ("no such pictures", None, "--images nowhere", "nowhere: no such pictures"),
        ("text for pictures", None, "--images text.txt", "text.txt: not a parquet file"),
        ("size of no tokens", None, "--image-size 50", "image_size: 50 is not a multiple of 28; 448 gives"),
        ("none of the pictures", None, "--limit 0", "cache.limit: must be greater than or equal to 1, got 0"),
        ("unknown device", None, "--device tpu", "device='tpu': allowed are"),
        ("a file where the folder goes", d.put("file", ""), "--output-dir file", "file: File exists; give another"),
    ]
]


def _shard(**entry: object) -> d.Damage:
    plain = {"dtype": "F32", "shape": [8, 16, 12], "data_offsets": [0, 6144]}
    return d.header("features/features-00001.safetensors", {"features": plain | entry}, data=6144)


FEATURES: list[tuple[str, d.Damage, str]] = [
    ("shard gone", d.remove("features/features-00001.safetensors"), "features-00001.safetensors: shard is missing; cache"),
    ("shard cut off", d.cut("features/features-00001.safetensors"), "features-00001.safetensors: truncated; cache again"),
    ("shard of no shape", _shard(shape=5), "features-00001.safetensors: truncated or no feature shard .. cache again"),
    ("shard of negative shape", _shard(shape=[-8, -16, 12]), "features-00001.safetensors: .. cache again"),
    ("shard before its beginning", _shard(data_offsets=[-99, 6045]), "features-00001.safetensors: .. cache again"),
    ("shard of another width", _shard(shape=[8, 12, 16]), "does not fit meta.json; cache again"),
    ("meta.json is no JSON", d.put("features/meta.json", "{"), "features/meta.json: not valid JSON .. restore"),
    ("meta.json of other types", d.set_json("features/meta.json", tokens="16"), "features/meta.json.tokens: .. got '16'"),
    ("meta.json of another count", d.set_json("features/meta.json", count=5), "24 rows, meta.json says 5; cache again"),
    ("index gone", d.remove("features/index.parquet"), "features/index.parquet: missing or broken .. cache again"),
    ("index that is none", d.put("features/index.parquet", "zz"), "features/index.parquet: missing or broken .. cache again"),
    ("no cache", d.empty("features"), "features: no feature cache there .. make one with `lowrank cache`"),
]
"""A feature cache that is broken, for the three commands that read one."""

LOWRANK: list[Row] = [
    ("train-lowrank", "rank too large", None, "--rank 13", "rank: 13 of a [16, 12] matrix; choose"),
    ("train-lowrank", "rank 0", None, "--rank 0", f"'--rank' .. {USAGE}"),
    ("train-lowrank", "unknown architecture", None, "--arch nosuch", "arch 'nosuch': no such architecture; there are"),
    ("train-lowrank", "unknown device", None, "--device tpu", "device='tpu': allowed are"),
    ("train-lowrank", "unknown start", None, "--start zz", "train.start: must be 'pca' or 'random', got 'zz'"),
    ("train-lowrank", "learning rate no number", None, "--lr nan", "train.lr: must be a finite number, got nan"),
    ("train-lowrank", "NaN", d.set_tensor("features/features-00001.safetensors", "features", d.nan), "--results-dir anew",
     "features: NaN or infinity among .. cache them again"),
    ("train-lowrank", "state cut off", d.cut("results/Sketch/last.safetensors"), "", "last.safetensors: missing or broken"),
    ("train-lowrank", "continued at another rank", None, "--resume --rank 3", "rank=4, asked for rank=3; a resumed training keeps"),
    ("train-lowrank", "continued on other features", d.set_json("features/meta.json", model="other"), "--resume",
     "trained on other features .. train on these anew"),
    ("train-lowrank", "a file where the folder goes", d.put("file", ""), "--results-dir file", "file: .. give another place"),
    ("train-lowrank", "a file for the logs", d.both(d.remove("log"), d.put("log", "")), "--results-dir new", "log: Not a dir"),
    ("compare-lowrank", "results of another architecture", d.set_json("results/Sketch/best_model.json", arch="MLP"), "",
     "results/Sketch: weights and best_model.json do not fit .. train it again"),
    ("compare-lowrank", "results of another rank", d.set_json("results/Sketch/best_model.json", rank=3), "",
     "results/Sketch: weights and best_model.json do not fit .. train it again"),
    ("compare-lowrank", "NaN among the weights", d.set_tensor("results/Sketch/best_model.safetensors", "", d.nan), "",
     "results/Sketch: .. 1 NaN .. train it again"),
    ("compare-lowrank", "model without its weights", d.remove("results/Sketch/best_model.safetensors"), "",
     "best_model.safetensors: missing or broken .. restore"),
    ("compare-lowrank", "not trained", None, "--arch MLP --output-dir anew", "results/MLP: no trained model there .. train it"),
    ("compare-lowrank", "no results", d.empty("results"), "", "results: no trained"),
    ("compare-lowrank", "a file where the folder goes", d.put("file", ""), "--output-dir file", "file: .. give another place"),
    ("visualize", "unknown architecture", None, "--arch nosuch", "arch 'nosuch': no such architecture; there are"),
    ("visualize", "picture there is not", None, "--image-idx 99", "image_idx: 99, there are test pictures 0 to"),
    ("visualize", "channels there are not", None, "--channels 0 --output-dir anew", "visualize.channels: must be greater than or equal to 1, got 0"),
    ("visualize", "pictures broken", d.both(*(d.put(f"features/pictures-0000{i}.parquet", "zz") for i in range(3))), "",
     "features/pictures-0000 .. no picture of row .. cache again"),
    ("visualize", "pictures that are none", d.both(*(
        d.table(f"features/pictures-0000{i}.parquet", [{"image": b"zz", "bbox": None}] * 8) for i in range(3))), "",
     "features/pictures-0000 .. no picture of row .. cache again"),
    ("visualize", "a file where the folder goes", d.put("file", ""), "--output-dir file", "file: .. give another place"),
]

BUILD: list[Row] = [
    ("build", what, damage, words if "--save-path" in words else f"{words} --save-path anew", said)
    for what, damage, words, said in [
        ("weights cut off", d.cut(LM), "", "lm/model.safetensors: truncated .. use another copy"),
        ("weight missing", d.set_tensor(LM, "q_proj.weight", None), "", "q_proj.weight is missing .. download it again"),
        ("weight of another shape", d.set_tensor(LM, "q_proj.weight", lambda t: t[:5]), "", "is [5, 24], config.json says"),
        ("NaN", d.set_tensor(LM, "q_proj.weight", d.nan), "", "NaN or infinity among its inputs; the checkpoint is damaged"),
        ("index leads out", d.both(d.remove(LM), d.put("lm/model.safetensors.index.json", json.dumps(
            {"metadata": {}, "weight_map": {"a": "../checkpoints/base/model.safetensors"}}))), "", "not a file name"),
        ("pickle that runs code", d.torch_file("lm/pytorch_model.bin", {"a": d.Code()}), "", "could run code; use the safe"),
        ("no config", d.remove(LM_CONFIG), "", "lm: no config.json .. give a folder that transformers saved"),
        ("config is no JSON", d.put(LM_CONFIG, "{"), "", "lm/config.json: not valid JSON .. restore"),
        ("config of an unknown family", d.set_json(LM_CONFIG, model_type="nosuch"), "", "'nosuch' .. give another checkpoint"),
        ("config that brings its code", d.set_json(LM_CONFIG, model_type="nosuch", auto_map={"AutoConfig": "x.Y"}), "",
         "lm/config.json: describes no causal language model .. give another checkpoint"),
        ("config of a vision model", None, "--model-id checkpoints/base", "'qwen2_5_vl' .. give another checkpoint"),
        ("config of text for a width", d.set_json(LM_CONFIG, hidden_size="x"), "", "hidden_size .. give another checkpoint"),
        ("config of no heads", d.set_json(LM_CONFIG, num_attention_heads=0), "", "describes no .. give another checkpoint"),
        ("config of another width", d.set_json(LM_CONFIG, hidden_size=32), "", "config.json says .. download"),
        ("no tokenizer", d.both(d.remove("lm/tokenizer.json"), d.remove("lm/tokenizer_config.json")), "",
         "lm: no tokenizer that can be read .. restore its tokenizer files"),
        ("tokenizer that is none", d.put("lm/tokenizer.json", '{"model": 5}'), "", "lm: no tokenizer that can be read"),
        ("text empty", d.put("text.txt", ""), "", "text.txt: it holds no text .. give one that does"),
        ("text not UTF-8", d.put("text.txt", b"abc \xff"), "", "text.txt: not UTF-8 text .. convert it"),
        ("no such text", None, "--calib-dataset no.txt", "no.txt: no such text; give wikitext2"),
        ("text of another kind", None, "--calib-dataset norms.json", "norms.json: unknown kind of text file; give one of"),
        ("parquet that is none", d.put("t.parquet", "zz"), "--calib-dataset t.parquet", "t.parquet: not a parquet file .. rest"),
        ("JSONL broken", d.put("t.jsonl", "zz"), "--calib-dataset t.jsonl", "t.jsonl, line 1: not valid JSON .. restore"),
        ("gzip broken", d.put("t.jsonl.gz", b"\x1f\x8bz"), "--calib-dataset t.jsonl.gz", "t.jsonl.gz: broken .. restore"),
        ("rank too large", None, "--rank 4000", "rank 4000 is larger than the input of .. choose at most 24"),
        ("rank 0", None, "--rank 0", f"'--rank' .. {USAGE}"),
        ("unknown method", None, "--method magic", "method='magic': allowed are lora_null_v2"),
        ("unknown device", None, "--device tpu", "device='tpu': allowed are"),
        ("layers there are not", None, "--targets nosuch", "targets: 'nosuch' matches none .. there are"),
        ("pattern that is none", None, "--targets (", "targets: '(' is no regular expression"),
        ("windows of nothing", None, "--seq-len 0", "build.seq_len: must be greater than or equal to 1, got 0"),
        ("folder of something else", None, "--save-path images", "images: holds '000.png', no part of an adapter .. give a new"),
        ("a file where the folder goes", d.put("file", ""), "--save-path file/a", "file: File exists; give another"),
    ]
]

GONE = {"reference": "gone", "revision": None, "digest": "0"}
META, WEIGHTS_OF = "adapter/nullspace.json", "adapter/adapter_model.safetensors"
ADAPTER: list[tuple[str, d.Damage | None, str, str]] = [
    ("no adapter", d.empty("adapter"), "", "adapter: no adapter here; make one by `subspacelab nullspace build`"),
    ("nullspace.json is no JSON", d.put(META, "{"), "", f"{META}: not valid JSON .. restore"),
    ("nullspace.json lacks a key", d.set_json(META, rank=None), "", f"{META}: no key 'rank'; build the adapter again"),
    ("rank of text", d.set_json(META, rank="x"), "", f"{META}: rank cannot be x; build the adapter again"),
    ("of another rank", d.set_json(META, rank=5), "", "rank 5 was built; build it again"),
    ("of an unknown method", d.set_json(META, method="magic"), "", "method='magic': allowed are"),
    ("of no layers", d.set_json(META, targets=[]), "", f"{META}: targets cannot be []; build the adapter again"),
    ("of layers there are not", d.set_json(META, targets=["nosuch"]), "", "adapter: .. nosuch"),
    ("of a base that is gone", d.set_json(META, base=GONE), "", "gone, is no such checkpoint .. give its place as `base`"),
    ("weights cut off", d.cut(WEIGHTS_OF), "", f"{WEIGHTS_OF}: missing or broken .. restore"),
    ("a tensor missing", d.set_tensor(WEIGHTS_OF, "q_proj.lora_B.weight", None), "", "is missing; build the adapter again"),
    ("a tensor of another shape", d.set_tensor(WEIGHTS_OF, "q_proj.lora_A.weight", lambda t: t[:, :5]), "", "another base"),
    ("NaN", d.set_tensor(WEIGHTS_OF, "q_proj.lora_A.weight", d.nan), "", "adapter: .. 1 NaN"),
    ("base of other weights", d.set_tensor(LM, "0.self_attn.q_proj.weight", lambda t: t + 1), "", "other weights; build again"),
    ("another base", None, "--base checkpoints/rl_stage1", "'qwen2_5_vl' .. give another checkpoint"),
    ("base cut off", d.cut(LM), "", "lm/model.safetensors: truncated .. use another copy"),
    ("unknown device", None, "--device tpu", "device='tpu': allowed are"),
]
"""An adapter, or its base, that is broken: for training and for verification."""
ANEW = "--output-dir anew"  # a finished training is given back without another look at what it came from

TRAIN: list[Row] = [
    ("train-adapter", what, damage, words, said)
    for what, damage, words, said in [
        ("no rows", d.remove("rows.jsonl"), ANEW, "rows.jsonl: no such instructions; give"),
        ("rows empty", d.put("rows.jsonl", ""), ANEW, "rows.jsonl: it holds no row; give"),
        ("rows with a broken line", d.put("rows.jsonl", '{"query": "a", "response": "b"}\n{"q'), ANEW, "line 2: .. restore"),
        ("rows of other keys", d.put("rows.jsonl", '{"q": "a"}'), ANEW, "rows.jsonl, line 1: `query` and `response` must"),
        ("rows not UTF-8", d.put("rows.jsonl", b"\xff"), ANEW, "rows.jsonl: not UTF-8 text .. convert"),
        ("rows nested 100,000 deep", d.put("rows.jsonl", "[" * 100_000), ANEW, "rows.jsonl, line 1: not valid JSON .. restore"),
        ("text for rows", None, f"{ANEW} --data text.txt", "text.txt: no such instructions; give"),
        ("no steps", None, f"{ANEW} --max-steps 0", "train.max_steps: must be greater than or equal to 1, got 0"),
        ("rows of no length", None, f"{ANEW} --max-length 1", "max_length 1: .. raise `max_length`"),
        ("learning rate no number", None, f"{ANEW} --lr nan", "train.lr: must be a finite number, got nan"),
        ("finished training broken", d.put("trained/ft/nullspace.json", "{"), "", "trained/ft/nullspace.json: not valid JSON"),
        ("a file where the folder goes", d.put("file", ""), "--output-dir file", "file: File exists; give another"),
    ]
]

VERIFY: list[Row] = [
    ("verify", "text empty", d.put("text.txt", ""), "", "text.txt: it holds no text .. give one that does"),
    ("verify", "text not UTF-8", d.put("text.txt", b"\xff"), "", "text.txt: not UTF-8 text .. convert it"),
    ("verify", "no tokens", None, "--max-activation-samples 0", "verify.max_activation_samples: must be greater than or equal to 1, got 0"),
    ("verify", "a folder where the file goes", None, "--save-stats images", "images: no statistics of this version"),
    ("verify", "a file where the folder goes", d.put("file", ""), "--save-stats file/s.json", "file: File exists; give another"),
]

STATS: list[Row] = [
    ("compare-stats", what, damage, words, said)
    for what, damage, words, said in [
        ("no such file", d.remove("stats/init.json"), "", "stats/init.json: no such file; write it by"),
        ("no JSON", d.put("stats/init.json", "{"), "", "stats/init.json: not valid JSON .. restore"),
        ("not UTF-8", d.put("stats/init.json", b"\xff"), "", "stats/init.json: not valid JSON .. restore"),
        ("a list", d.put("stats/init.json", "[]"), "", "stats/init.json: expected an object with the keys"),
        ("unknown key", d.set_json("stats/init.json", colour=1), "", "colour: no such key, got 1; allowed are"),
        ("missing key", d.set_json("stats/init.json", summary=None), "", "stats/init.json.summary: Field required"),
        ("another number of layers", d.set_json("stats/init.json", num_layers=7), "", "stats has 3; write it again"),
        ("swapped", None, "--init-stats stats/trained.json", "init has trained=True .. give the statistics"),
        ("another report", None, "--init-stats norms.json", "norms.json.device: no such key"),
        ("a file where the folder goes", d.put("file", ""), "--output-dir file", "file: File exists; give another place"),
    ]
]

NORMS: list[Row] = [
    ("norms", "NaN", d.set_tensor(MODEL, EMBED, d.nan), "", f"{EMBED}: 1 of 96 vectors hold NaN .. download or train"),
    ("norms", "tokenizer is no JSON", d.put("checkpoints/base/tokenizer.json", "{"), "", "tokenizer.json: not valid JSON"),
    ("norms", "second model is none", None, "--model nowhere", "nowhere: no such checkpoint; give"),
    ("norms", "unknown device", None, "--device tpu", "device='tpu': allowed are"),
    ("norms", "a folder where the file goes", None, "--output images", "--output images: a folder; give the name of a file"),
    ("norms", "a file where the folder goes", d.put("file", ""), "--output file/a.json", "file: File exists; give another"),
]

FAULTS: list[Row] = [
    *((command, what, damage, "", said) for command in ("decompose", "norms") for what, damage, said in WEIGHTS),
    *((command, what, None, f"{flag} {given}", said)
      for command, flag in [("decompose", "--model-id"), ("cache", "--model-id"), ("build", "--model-id")]
      for what, given, said in REFERENCES),
    *DECOMPOSE, *COMPARE, *CACHE,
    *((command, what, damage, "", said)
      for command in ("train-lowrank", "compare-lowrank", "visualize") for what, damage, said in FEATURES),
    *LOWRANK, *BUILD,
    *((command, what, damage, f"{words} {ANEW}" if command == "train-adapter" else words, said)
      for command in ("train-adapter", "verify") for what, damage, words, said in ADAPTER),
    *TRAIN, *VERIFY, *STATS, *NORMS,
]

PARAMS: list[tuple[str, d.Damage, str]] = [
    ("unknown key", d.replaced("params.yaml", "decompose:\n", "decompose:\n  colour: red\n"), "decompose.colour: no such key"),
    ("unknown section", d.replaced("params.yaml", "study: demo", "colour: red\nstudy: demo"), "params.yaml.colour: must be"),
    ("wrong type", d.replaced("params.yaml", "rank: null", "rank: many"), "decompose.rank: must be .. got 'many'"),
    ("wrong type at the top", d.replaced("params.yaml", "rank: 128", "rank: many"), "params.yaml.rank: must be .. got 'many'"),
    ("rank 0", d.replaced("params.yaml", "rank: 128", "rank: 0"), "params.yaml.rank: must be greater than or equal to 1, got 0"),
    ("key missing", d.replaced("params.yaml", "rank: 128", ""), "params.yaml.rank: Field required"),
    ("seed beyond 64 bits", d.replaced("params.yaml", "seed: 42", f"seed: {1 << 64}"), "params.yaml.seed: must be less than or equal to 4294967295, got"),
    ("stage that is text", d.put("dvc.yaml", "stages: {scenes: a, decompose: a}"), "dvc.yaml: decompose: must be .. got 'a'"),
    ("alias", d.replaced("params.yaml", "rank: 128", "rank: &r 128\nx: *r"), "params.yaml: .. alias *r in line .. write its"),
    ("section is a list", d.replaced("params.yaml", "decompose:\n", "decompose: [1]\nx:\n"), "params.yaml.decompose: must be"),
    ("section of the study missing", d.replaced("pipelines/studies/demo.yaml", "scenes:", "other:"), "Field required"),
    ("key twice", d.replaced("params.yaml", "study: demo", "study: demo\nstudy: smoke"), 'line 4: found duplicate key "study"'),
    ("broken YAML", d.put("params.yaml", "study: [demo\nrank: 3"), "params.yaml: not valid YAML at line 2"),
    ("YAML that makes objects", d.put("params.yaml", "study: !!python/object/apply:os.system [touch ran]"), "a constructor"),
    ("not UTF-8", d.put("params.yaml", b"study: \xff"), "params.yaml: not valid YAML .. restore"),
    ("a list", d.put("params.yaml", "- 1"), "params.yaml: expected a mapping of sections, got list"),
    ("no params.yaml", d.remove("params.yaml"), "params.yaml is missing; run from the project's root"),
    ("study that does not exist", d.replaced("params.yaml", "study: demo", "study: nosuch"), "no such study 'nosuch'; there are"),
    ("study broken", d.put("pipelines/studies/demo.yaml", "checkpoints: {"), "demo.yaml: not valid YAML at line 1"),
    ("no dvc.yaml", d.remove("dvc.yaml"), "dvc.yaml is missing; run from the project's root"),
    ("a file for the work folder", d.put(".cache", ""), ".cache/stages/decompose@base: Not a directory; give another place"),
]

TOLERANCES, FIGURES = d.put("tolerances.yaml", "tolerances: []"), d.put("reference.json", "{}")
PROJECT: list[Row] = [
    ("sweep", "key that is none", None, "sweep -S colour=1,2 --dry-run", "-S colour: params.yaml has no 'colour' there; it has"),
    ("sweep", "nothing to vary", None, "sweep", "nothing to sweep over; give -S key=value"),
    ("sweep", "no value", None, "sweep -S rank=", "-S 'rank=' is not of the form key=value,value, such as"),
    ("sweep", "bracket that does not close", None, "sweep -S rank=[1,2", "'[1,2': a bracket or quote does not close; quote"),
    ("sweep", "params.yaml broken", d.put("params.yaml", "a: ["), "sweep -S rank=4", "params.yaml: not valid YAML at line 1"),
    ("sweep", "no project", d.remove("dvc.yaml"), "sweep -S rank=4", "dvc.yaml is missing; run from the project's root"),
    ("check", "no reference", TOLERANCES, "", "reference.json: No such file or directory; check the path"),
    ("check", "reference no JSON", d.both(TOLERANCES, d.put("reference.json", "{")), "", "reference.json: not valid JSON"),
    ("check", "reference of text", d.both(TOLERANCES, d.put("reference.json", '{"a": "b"}')), "", "reference.json.a: .. got 'b'"),
    ("check", "no tolerances", FIGURES, "", "tolerances.yaml is missing"),
    ("check", "tolerance of another key", d.both(FIGURES, d.put(
        "tolerances.yaml", "tolerances: [{metrics: a, reason: b, x: 1}]")), "", "tolerances[0].x: no such key, got 1; allowed"),
    ("check", "tolerance of text", d.both(FIGURES, d.put("tolerances.yaml", "tolerances: [a]")), "", "tolerances[0]: expected"),
    ("write", "no tolerances", None, "", "tolerances.yaml is missing"),
    ("write", "over a file of others", d.both(TOLERANCES, d.put("reference.json", '{"a": 1}')), "",
     "reference.json: 'a' is not a metric <file>:<key>; give"),
    ("write", "no project", d.both(TOLERANCES, d.remove("dvc.yaml")), "", "dvc.yaml is missing; run from the project's root"),
    ("sync", "a file for the store", d.both(d.empty(".git"), d.put("mlruns", "")), "", "mlruns/.lock: Not a directory; give"),
    ("reap", "a file for the store", d.both(d.empty(".git"), d.put("mlruns", "")), "", "mlruns/.lock: Not a directory; give"),
    ("ui", "a file for the store", d.both(d.empty(".git"), d.put("mlruns", "")), "", "mlruns/.lock: Not a directory; give"),
    ("ui", "port no number", None, "ui --port x", f"'--port' .. {USAGE}"),
]


def table() -> str:
    """The number of faults of each command, as docs/reliability.md has it."""
    rows = Counter(command for command, *_ in (*FAULTS, *PROJECT))
    words = {name: " ".join(line.split(" -")[0].split()[:2]) for name, line in COMMANDS.items()}
    lines = [f"| `subspacelab {words[name]}` | {count} |" for name, count in rows.items()]
    lines += [f"| stage scripts: params.yaml, studies, dvc.yaml | {len(PARAMS)} |"]
    return "\n".join([*lines, f"| together | {sum(rows.values()) + len(PARAMS)} |"])


if __name__ == "__main__":
    print(table())
