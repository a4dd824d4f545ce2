"""The model card of an adapter, in the form PEFT gives it: what `nullspace.json` says, for who finds it on the hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subspacelab.core.errors import printable
from subspacelab.core.references import of_pipeline
from subspacelab.models.adapter_card import write_card
from subspacelab.models.lora_folder import read_meta
from subspacelab.nullspace.inits import METHODS
from subspacelab.nullspace.knowledge import Knowledge

PAPER = "https://arxiv.org/abs/2503.02659"


@dataclass(frozen=True)
class Measured:
    """A number of the model before and after training, such as the share of old facts that it recalls."""

    label: str
    """What it is, in words."""
    base: float | None
    """Of the base; None where it has none."""
    adapted: float
    """With the adapter."""


def card_of(meta: Mapping[str, Any], measured: Sequence[Measured] = ()) -> str:
    """The card of the adapter that `nullspace.json` (`meta`) describes; equal arguments give equal text."""
    from huggingface_hub import ModelCardData  # half a second

    name, hub = _base_name(meta), meta["base"]["revision"] is not None
    tags = ["lora", "subspacelab", meta["method"].replace("_", "-")]
    tags += [f"base_model:adapter:{meta['base']['reference']}"] if hub else []
    data = ModelCardData(
        base_model=meta["base"]["reference"] if hub else None,  # the hub refuses what is no repository of it
        library_name="peft",
        pipeline_tag="text-generation",
        tags=sorted(tags),
    )
    title = f"# {meta['method']} adapter of rank {meta['rank']} on {name}"
    parts = [title, *_details(meta), *_null_space(meta), *_forgetting(measured), *_start(meta), _versions()]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def add_measured(folder: Path, measured: Sequence[Measured]) -> bool:
    """Renews the card of the adapter in `folder` with what was measured, unless it was edited; says whether it did."""
    return write_card(folder, card_of(read_meta(folder), measured))


def measured_knowledge(base: Knowledge, adapted: Knowledge) -> list[Measured]:
    """What the card says of what a model knows."""
    labels = {
        "recall": "old facts recalled exactly",
        "recall_calibrated": "of these, facts of the calibration text",
        "recall_uncalibrated": "of these, facts that are not in it",
        "task": "new problems solved",
        "drift": "drift of the last hidden states on old text, relative",
    }
    pairs = [(label, getattr(base, key), getattr(adapted, key)) for key, label in labels.items()]
    return [Measured(label, before, after) for label, before, after in pairs if after is not None]


def _base_name(meta: Mapping[str, Any]) -> str:
    """What the base is called: its repository, or the last part of its folder, whose place is nobody's business."""
    reference = str(meta["base"]["reference"])
    if meta["base"]["revision"] is None:
        reference = Path(reference.partition(":")[2] if of_pipeline(reference) else reference).name
    return _plain(reference)


def _source(reference: object) -> str:
    """Data as it was named; of a folder elsewhere the last part alone."""
    path = Path(str(reference))
    elsewhere = path.is_absolute() or path.parts[:1] in (("~",), ("..",))
    return _plain(path.name if elsewhere else str(reference))


def _plain(text: str) -> str:
    return printable(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")


def _details(meta: Mapping[str, Any]) -> Iterator[str]:
    method, trained, base = METHODS.get(meta["method"]), meta["trained"], _base_name(meta)
    revision = meta["base"]["revision"]
    where = f"`{base}` at revision `{revision}`" if revision else f"`{base}`, a checkpoint that is not on the hub"
    lines = [
        f"- **Base model:** {where}",
        f"- **Method:** `{meta['method']}`" + (f": {method.summary}" if method else ""),
        f"- **Rank:** {meta['rank']}, on {len(meta['targets'])} layers",
        f"- **Seed:** {meta['seed']}",
        f"- **Trained:** {_training(trained) if trained else 'no; it computes what the base computes'}",
    ]
    yield "## Model Details"
    yield "\n".join(lines)
    if meta["method"].startswith("lora_null"):
        formula = "A and B of `W x + A (B x)` are `lora_B` and `lora_A` in PEFT's files."
        yield f"{formula} [LoRA-Null]({PAPER}) puts B where old inputs are small."


def _training(trained: Mapping[str, Any]) -> str:
    rows, lr = _source(trained["names"].get("rows")), trained["job"].get("lr")
    what = f"{trained['steps']} steps on {trained['num_rows']} rows of `{rows}`, learning rate {lr}"
    return f"{what}, {trained['trainable_parameters']:,} parameters; final loss {trained['final_loss']:.4g}"


def _null_space(meta: Mapping[str, Any]) -> Iterator[str]:
    yield "## Null space"
    found, calibration = meta.get("summary") or {}, meta.get("calibration")
    if not calibration or "BX_ratio" not in found:
        yield "Not calibrated: this method's start looks at no inputs."
        return
    text = _source(calibration["calib_dataset"])
    yield (
        "How much of a layer's input B lets through, `||Q X|| / ||X||` with Q an orthonormal basis of B's rows, as it"
        f" was built; means over the layers, on {calibration['num_tokens']:,} tokens of `{text}` and on text held out"
        " of it."
    )
    rows = [
        ("this adapter", "BX_ratio", "BX_ratio_held_out"),
        ("optimum of this rank", "optimum", "optimum_held_out"),
        ("random B (baseline)", "random", "random"),
    ]
    yield _table(
        ["", "calibration text", "held-out text"],
        [[label, *(_number(found.get(k)) for k in keys)] for label, *keys in rows],
    )
    if meta["trained"] and not meta["down_frozen"]:
        yield "B was trained too, so that its ratio is another now; `subspacelab nullspace verify` measures it."


def _forgetting(measured: Sequence[Measured]) -> Iterator[str]:
    if measured:
        yield "## Forgetting"
        rows = [[_plain(m.label), _number(m.base), _number(m.adapted)] for m in measured]
        yield _table(["", "base", "with this adapter"], rows)


def _start(meta: Mapping[str, Any]) -> Iterator[str]:
    revision, reference = meta["base"]["revision"], str(meta["base"]["reference"])
    if of_pipeline(reference):
        place = f"data/checkpoints/{reference.partition(':')[2]}"
    else:
        place = reference if revision else f"path/to/{_base_name(meta)}"
    at = f", revision={json.dumps(revision)}" if revision else ""
    yield "## How to Get Started with the Model"
    yield "\n".join(
        [
            "```python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(place)}{at})",
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")  # or its name on the hub',
            "```",
        ]
    )


def _versions() -> str:
    return f"### Framework versions\n\n- PEFT {version('peft')}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
