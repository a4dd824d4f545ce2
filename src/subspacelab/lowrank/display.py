"""Terminal output of the commands of lowrank."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from subspacelab.core.errors import printable
from subspacelab.data.pictures import describe_skipped, skipped_files
from subspacelab.lowrank.comparison import BATCH, CHANGE, Comparison
from subspacelab.lowrank.extraction import Cached, Throughput
from subspacelab.lowrank.storage import TASK
from subspacelab.lowrank.training import TrainingResult
from subspacelab.plotting.terminal import print_table, show_number

CHANGED = {"best_epoch": "d", CHANGE: "+.1e", f"{CHANGE}_se": ".1e"}
"""What is shown of a training, and how."""


def print_cache(cached: Cached, console: Console | None = None) -> None:
    """Prints the content of a cache, the pictures that are missing, and the speed."""
    console, meta = console or Console(), cached.meta
    shape = f"[{meta.tokens}, {meta.dim}] {meta.dtype}"
    print_table(
        "Vision features",
        ["model", "pictures", "each", "unreadable"],
        [[meta.model, str(meta.count), shape, str(len(meta.unreadable))]],
        console=console,
    )
    for name in meta.unreadable:
        console.print(f"left out, cannot be read: {printable(name)}", markup=False)
    if cached.throughput is not None:
        console.print(describe_throughput(cached.throughput), markup=False, highlight=False, soft_wrap=True)


def print_skipped(pictures: Path, console: Console | None = None) -> None:
    """Prints the files of a folder that are not taken as pictures, if any."""
    if skipped := skipped_files(pictures):
        text = f"not taken for pictures: {describe_skipped(skipped)}"
        (console or Console()).print(text, markup=False, highlight=False, soft_wrap=True)


def describe_throughput(found: Throughput) -> str:
    """Pictures per second, and whether decoding or the tower is the bottleneck."""

    def rate(seconds: float) -> str:
        return f"{found.pictures / max(seconds, 1e-9):.3g}"

    bound = "decode-bound" if found.is_decode_bound else "model-bound"
    decoders = "in this process"
    if found.decode_workers:
        decoders = f"{found.decode_workers} {'process' if found.decode_workers == 1 else 'processes'}"
    alone = f"the tower alone {rate(found.tower_seconds)}, decoding alone ({decoders}) {rate(found.decode_seconds)}"
    each = f" in each of {found.num_processes} processes" if found.num_processes > 1 else ""
    return f"{rate(found.seconds)} pictures per second{each}, {bound}: {alone}"


def print_training(result: TrainingResult, console: Console | None = None) -> None:
    """Prints the best epoch and the folder of the result."""
    best = result.progress.history[result.progress.best_epoch - 1]
    row = [result.folder.name, str(result.progress.best_epoch), str(result.progress.epoch)]
    row += [f"{best['val_mse']:.5f}", f"{best['val_cosine']:.4f}"]
    print_table(
        f"Trained in {result.folder}, {result.rank}",
        ["arch", "best epoch", "epochs", "validation MSE", "cosine"],
        [row],
        console=console,
    )


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the similarity of each method, its cost, and the change by training."""
    metrics = comparison.metrics
    console = console or Console()
    rank = f"rank {metrics['rank']} of {metrics['full_rank']}"
    rows = []
    for name, measures in metrics["methods"].items():
        cosine, residual = measures["cosine"], measures.get("residual_over_svd", {})
        rest = [measures[m]["mean"] for m in ("share_of_svd", "token_cosine", "explained_variance")]
        times = [show_number(residual.get(part)) for part in ("mean", "std")]
        rows.append([name, f"{cosine['mean']:.4f}", f"{cosine['std']:.4f}", *(f"{v:.4f}" for v in rest), *times])
    print_table(
        f"{rank.capitalize()}, {metrics['num_images']} test pictures, normalisation {metrics['normalisation']}; "
        "+- standard deviation over the pictures",
        ["method", "cosine", "+-", "of SVD", "by token", "explained", "residual", "+-"],
        rows,
        console=console,
    )
    console.print(
        "by token: mean over the tokens of each token's cosine; residual: ||X - Y||^2 over that of the SVD, mean of "
        f"the pictures' ratios. The sketches take {metrics['power_steps']} power steps.",
        markup=False,
    )
    rows = []
    for name, flops in metrics["flops_per_picture"].items():
        training = metrics["training"].get(name)
        row = [name, f"{flops / 1e6:.1f}", f"{comparison.milliseconds[name]:.2f}"]
        changed = [f"{training[key]:{form}}" for key, form in CHANGED.items()] if training else ["-"] * len(CHANGED)
        rows.append(row + changed)
    print_table(
        f"Cost of one picture at {rank}, and what training changed",
        ["method", "MFLOP", "ms", "best epoch", "cosine change", "+-"],
        rows,
        console=console,
    )
    console.print(
        f"ms: of this run, batches of {BATCH}, {torch.get_num_threads()} threads. cosine change: the cosine less that "
        "of the same network before training; +- its standard error over the pictures, of this one training.",
        markup=False,
    )
    print_storage(comparison, console)


def print_storage(comparison: Comparison, console: Console) -> None:
    """Prints what the judge found by each method, and the best rank and format for each number of bytes."""
    metrics, storage = comparison.metrics, comparison.storage
    if metrics["task"]:
        rows = [[name, *_judged(found)] for name, found in metrics["task"].items()]
        print_table(
            f"Task at rank {metrics['rank']} of {metrics['full_rank']}: a box, found by reading the approximation",
            ["method", "IoU", "+-", "change to X itself", "+-"],
            rows,
            console=console,
        )
        console.print("+-: standard error over the pictures; the change is paired.", markup=False)
    front = storage[storage["on_front"]].sort_values("bytes_per_picture")
    rows = [
        [f"{r['bytes_per_picture'] / 1000:.1f}", r["method"], str(r["rank"]), r["format"], f"{r['cosine']:.4f}"]
        + (_judged(r) if metrics["task"] else [])
        for r in front.to_dict("records")
    ]
    print_table(
        "What to store for a budget: nothing of fewer bytes has a higher cosine",
        ["kB per picture", "method", "rank", "format", "cosine"]
        + (["IoU", "+-", "change to X itself", "+-"] if metrics["task"] else []),
        rows,
        console=console,
    )
    console.print("X: the tokens themselves. The B of a basis is shared by all pictures and not counted.", markup=False)


def _judged(found: Mapping[Any, Any]) -> list[str]:
    """IoU and its change with their errors; a dash for what was not judged."""
    forms = zip(TASK, (".3f", ".3f", "+.3f", ".3f"), strict=True)
    return ["-" if found[name] != found[name] else f"{found[name]:{form}}" for name, form in forms]
