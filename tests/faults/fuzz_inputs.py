"""Inputs beside those of the workshop: other forms of its checkpoints, texts and rows, work cut short, a project."""

import gzip
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tests.faults.workshop import COMMANDS, QUICK, run, write_inputs
from tests.tiny import write_tiny_qwen_vl

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight",
         "model.layers.1.input_layernorm.weight", "lm_head.weight")  # fmt: skip
HALF_ADAPTER = COMMANDS["train-adapter"].replace("trained", "half").replace("steps 2", "steps 4 --save-steps 1")
HALF_NETWORK = COMMANDS["train-lowrank"].replace("-dir results", "-dir half-results").replace("epochs 2", "epochs 5")
DOCUMENTS = [f"{'abcdefgh'[i % 8] * 9} {i % 9}plus" for i in range(60)]


class Ended(BaseException):
    """Stands for a kill."""


RESULTS = {
    "svd/out": ("decompose",),
    "rotations": ("compare-rotations",),
    "cached": ("cache",),
    "results": ("train-lowrank", "train-adalora", "compare-lowrank", "visualize"),
    "half-results": ("half-lowrank",),
    "adapter": ("build",),
    "adapter-v1": ("build-v1",),
    "trained": ("build", "train-adapter"),
    "half": ("build", "half-adapter"),
    "stats/measured.json": ("build", "verify"),
    "stats/compared": ("compare-stats",),
    "norms": ("norms",),
    "names-out": ("decompose-names",),
}
"""What lies in the template as an earlier result, and the commands that make it."""
IN_ORDER = {
    "train-adalora": COMMANDS["train-lowrank"].replace("Sketch", "AdaLoRA"),
    **COMMANDS,
    "half-lowrank": HALF_NETWORK,
    "build-v1": f"{COMMANDS['build']} --save-path adapter-v1 --method lora_null_v1",
    "half-adapter": HALF_ADAPTER,
    "decompose-names": f"rotation decompose --model-id names/a --output-dir names-out {QUICK}",
}


def build_template(place: Path, parts: Collection[str]) -> None:
    """A folder in which every command has run well whose result is among `parts`; it is the working directory then."""
    place.mkdir(parents=True)
    os.chdir(place)
    write_inputs(place)
    _write_names(place)
    _write_checkpoints(place)
    _write_texts(place)
    made = [place for place in RESULTS if any(f"{part}/".startswith(f"{place}/") for part in parts)]
    wanted = {name for place in made for name in RESULTS[place]}
    for name, words in IN_ORDER.items():
        if name in wanted:
            _run_to_its_third_step(words) if name.startswith("half-") else _run_well(words)
    shutil.rmtree("log", ignore_errors=True)
    if "project" in parts:
        _write_project(place / "project")


def _run_well(words: str) -> None:
    assert run(words) == 0, words


def _write_names(place: Path) -> None:
    for number, name in enumerate("abc"):
        (place / "names" / name).mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        tensors = {key: torch.randn((8, 6) if "norm" not in key else (6,), generator=generator) for key in NAMES}
        save_file(tensors, place / "names" / name / "model.safetensors", {"format": "pt"})


def _write_checkpoints(place: Path) -> None:
    write_tiny_qwen_vl(place / "sharded", sharded=True)
    write_tiny_qwen_vl(place / "bin", format="bin")
    lm = load_file(place / "lm/model.safetensors")
    for name in ("lm-sharded", "lm-bin"):
        shutil.copytree(place / "lm", place / name, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(lm, place / "lm-bin/pytorch_model.bin")
    halves = {"m-1.safetensors": sorted(lm)[::2], "m-2.safetensors": sorted(lm)[1::2]}
    for file, keys in halves.items():
        save_file({key: lm[key] for key in keys}, place / "lm-sharded" / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (place / "lm-sharded/model.safetensors.index.json").write_text(json.dumps(index))


def _write_texts(place: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (place / "text.jsonl").write_text(lines)
    for name in ("text.jsonl.gz", "text.json.gz"):
        (place / name).write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame({"text": DOCUMENTS}).to_parquet(place / "text.parquet")
    pd.DataFrame({"sentence": DOCUMENTS}).to_parquet(place / "sentence.parquet")
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    (place / "rows.json").write_text(json.dumps(rows))
    pictures = sorted((place / "images").glob("*.png"))
    box = {"bbox_2d": [1, 2, 30, 20]}
    (place / "images.jsonl").write_text(
        "".join(json.dumps({"image": f"images/{p.name}", "response": json.dumps(box)}) + "\n" for p in pictures)
    )
    (place / "grounding").mkdir()
    pd.DataFrame(
        [
            {"image": {"bytes": p.read_bytes(), "path": p.name}, "question": "q", "answer": ["a"], "dataset_id": p.stem}
            | {"bbox": [1.0, 2.0, 3.0, 4.0]}
            for p in pictures
        ]
    ).to_parquet(place / "grounding/x.parquet")


def _run_to_its_third_step(words: str) -> None:
    from subspacelab.tracking import protocol as null

    def end(self: Any, metrics: Mapping[str, float], step: int = 0) -> None:
        if step == 3:
            raise Ended

    with patch.object(null.NullTracker, "log_metrics", end):
        try:
            run(words)
        except Ended:
            return
    raise AssertionError(f"not cut short: {words}")


def _write_project(place: Path) -> None:
    place.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "pipelines", place / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "src").symlink_to(ROOT / "src")
    shutil.copytree(place.parent / "checkpoints/base", place / "data/checkpoints/base")
    params = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(
        params.replace("study: demo", "study: smoke").replace("threads: 2", "threads: 1")
    )
    (place / ".git").mkdir()
