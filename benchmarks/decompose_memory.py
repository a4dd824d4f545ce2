"""Claim: decomposing takes at most 3 times the largest matrix in float32, whatever the size of the checkpoint.

Builds a random sharded bf16 Qwen2.5-VL of 1.6 GB, decomposes it in a child process, loads it with
transformers in float32 in another, and compares the peaks of their anonymous memory (Linux only: the
pages of a mapped weight file count as resident, but the system takes them back when it needs them).

    python benchmarks/decompose_memory.py                  # minutes, 6 GB of disk in the temporary folder
    python benchmarks/decompose_memory.py --layers 12      # a larger checkpoint, the same peak
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subspacelab.checkpoints import checkpoint_writer, matrix_shape, open_source
from subspacelab.core.files import write_json

LIMIT = 3.0
SAMPLE_SECONDS = 0.02
LOAD_SCRIPT = """
import sys, torch
from transformers import Qwen2_5_VLForConditionalGeneration
model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
    sys.argv[1], dtype=torch.float32, output_loading_info=True)
wrong = report["missing_keys"] or report["unexpected_keys"]
sys.exit(f"keys do not agree: {sorted(wrong)[:3]}" if wrong else 0)
"""


@dataclass(frozen=True)
class Measured:
    """What one child process took."""

    peak_bytes: int
    """Largest RssAnon seen: the interpreter, its libraries and the work together."""
    seconds: float
    """Wall time."""


def main() -> None:
    """Prints both peaks and the ratio; exits with 1 if the claim does not hold."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="decompose_memory_") as temporary:
        folder = Path(temporary) / "random"
        largest = build(folder, options.vocab, options.hidden, options.layers)
        on_disk = sum(file.stat().st_size for file in folder.iterdir())
        ours = measure(_decompose_command(folder, Path(temporary) / "svd", options.device))
        theirs = measure([sys.executable, "-c", LOAD_SCRIPT, str(folder)])
    ratio = ours.peak_bytes / largest
    print(f"checkpoint on disk              {on_disk / 1e9:6.2f} GB")
    print(f"largest matrix in float32       {largest / 1e9:6.2f} GB")
    print(f"subspacelab rotation decompose  {ours.peak_bytes / 1e9:6.2f} GB peak, {ours.seconds:5.0f} s")
    print(f"transformers, load in float32   {theirs.peak_bytes / 1e9:6.2f} GB peak, {theirs.seconds:5.0f} s")
    print(f"decompose / largest matrix      {ratio:6.2f} (at most {LIMIT})")
    if options.out:
        figures = {
            "largest_bytes": largest,
            "peak_bytes": ours.peak_bytes,
            "transformers_peak_bytes": theirs.peak_bytes,
        }
        write_json(options.out, {"command": shlex.join(["python", *sys.argv]), **figures, "ratio": ratio})
    raise SystemExit(ratio > LIMIT)


def build(folder: Path, vocab: int, hidden: int, layers: int) -> int:
    """Writes the random checkpoint tensor by tensor; returns the bytes of its largest matrix in float32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(**_config(vocab, hidden, layers))
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    stored = config.to_dict() | {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "dtype": "bfloat16"}
    with checkpoint_writer(folder, stored, max_shard_bytes=500_000_000) as writer:
        for name, shape in shapes.items():
            if name != "lm_head.weight":  # tied to the embedding, as in the 3B
                weight = torch.empty(shape, dtype=torch.bfloat16)
                writer.add(name, weight.normal_(std=0.02, generator=generator))
    with open_source(folder) as checkpoint:
        infos = [checkpoint.info(name) for name in checkpoint.names]
    matrices = [matrix_shape(info.shape) for info in infos if len(info.shape) > 1]
    return max(rows * columns for rows, columns in matrices) * 4


def measure(command: Sequence[str]) -> Measured:
    """Runs a command, sampling its anonymous memory every 20 ms; its failure is ours."""
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(SAMPLE_SECONDS)
    if child.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed with exit code {child.returncode}")
    return Measured(peak, time.monotonic() - start)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, _, rest = status.partition("RssAnon:")
    return int(rest.split()[0]) * 1024 if rest else 0


def _decompose_command(folder: Path, output: Path, device: str) -> list[str]:
    room = [sys.executable, "-m", "subspacelab", "rotation", "decompose", "--no-track"]
    return [*room, "--model-id", str(folder), "--output-dir", str(output), "--device", device]


def _config(vocab: int, hidden: int, layers: int) -> dict[str, Any]:
    """The 3B's proportions: its text layers are 16 heads of 128 at width 2048; a small vision tower."""
    heads = max(2, hidden // 128)
    section = hidden // heads // 8
    text = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": hidden * 43 // 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2 * section, section, section]},
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 320,
        "num_heads": 4,
        "intermediate_size": 856,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [1],
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
