"""Inputs beside those of the workshop: other forms of its checkpoints, texts and rows, work cut short, a project."""

import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tests.faults.workshop import COMMANDS, QUICK, run
from tests.tiny import write_tiny_qwen_vl

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight",
         "model.layers.1.input_layernorm.weight", "lm_head.weight")  # fmt: skip
HALF = COMMANDS["train-adapter"].replace("trained", "half").replace("--max-steps 2", "--max-steps 4 --save-steps 1")
ARCHS = ("Sketch", "AdaLoRA")
DOCUMENTS = [f"{'abcdefgh'[i % 8] * 9} {i % 9}plus" for i in range(60)]


class Ended(BaseException):
    """Stands for a kill."""


def write_more(place: Path) -> None:
    """Everything that the workshop does not have; the working directory is `place`."""
    for number, name in enumerate("abc"):
        (place / "names" / name).mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        tensors = {key: torch.randn((8, 6) if "norm" not in key else (6,), generator=generator) for key in NAMES}
        save_file(tensors, place / "names" / name / "model.safetensors", {"format": "pt"})
    assert run(f"rotation decompose --model-id names/a --output-dir names-out {QUICK}") == 0
    _write_checkpoints(place)
    _write_texts(place)
    _write_trainings()
    _write_project(place / "project")


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


def _write_trainings() -> None:
    from subspacelab.tracking import null

    def end(self: Any, metrics: Mapping[str, float], step: int = 0) -> None:
        if step == 3:
            raise Ended

    with patch.object(null.NullTracker, "log_metrics", end):
        for words in (
            HALF,
            COMMANDS["train-lowrank"].replace("-dir results", "-dir half-results").replace("epochs 2", "epochs 5"),
        ):
            try:
                run(words)
            except Ended:
                continue
            raise AssertionError(f"not cut short: {words}")
    assert run(COMMANDS["train-lowrank"].replace("Sketch", "AdaLoRA")) == 0
    assert run(COMMANDS["compare-lowrank"]) == 0
    assert run(f"{COMMANDS['build']} --save-path adapter-v1 --method lora_null_v1") == 0
    shutil.rmtree("log", ignore_errors=True)


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
