"""Claim: `nullspace build` takes the memory of one block, its moments and the hidden states, whatever the depth: at the
widths of Llama-2-7B (4096, 11008; rank 128, 64 windows of 512 tokens, CPU) at most 6 GB.

Builds random bf16 Llamas of 2 and 4 blocks with a tokenizer and a text, builds an adapter on each in a child process,
and reports the child's largest resident size (VmHWM: Linux only; mapped file pages count) and its seconds. `--before`
takes another checkout's `src`, to measure that one beside. Eigenvectors of width 11008 take most of the time and none
of the claim: `--stand-in` replaces the solvers by what they allocate (all pairs: a copy and a workspace of twice its
size; all values: a copy; the bottom pairs in place: these). `--eigenvectors` times the solvers instead, in seconds of
wall and of CPU, once each.

    python benchmarks/calibration_scale.py --tiny                         # seconds
    python benchmarks/calibration_scale.py                                # hours on 2 cores: 24 solves of width 11008
    python benchmarks/calibration_scale.py --stand-in --windows 8         # minutes; the states are then 470 MB smaller
    python benchmarks/calibration_scale.py --eigenvectors --dims 2048 4096
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.linalg
import torch
from torch import Tensor

from subspacelab.core.files import write_json

LIMIT = 6e9
FLAT = 1.1
"""The tensors that live after a block are the same after each; the allocator keeps a little more of them."""
VOCABULARY = 32000


def write_model(folder: Path, hidden: int, inner: int, depth: int) -> None:
    """A random bf16 Llama, written tensor by tensor, with a tokenizer of letters."""
    from subspacelab.checkpoints import checkpoint_writer
    from subspacelab.synthetic.facts.llm import build_llm_tokenizer, write_llm_tokenizer

    heads = max(1, hidden // 128)
    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"},
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": depth, "vocab_size": VOCABULARY},
        **{"num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-5},
        **{"tie_word_embeddings": False, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1},
    }
    square, up, down = (hidden, hidden), (inner, hidden), (hidden, inner)
    shapes = {f"self_attn.{kind}_proj": square for kind in "qkvo"}
    shapes |= {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    with checkpoint_writer(folder, config) as writer:
        for name in ("model.embed_tokens", "lm_head"):
            writer.add(f"{name}.weight", torch.randn(VOCABULARY, hidden).div_(hidden**0.5).bfloat16())
        for i in range(depth):
            for kind, shape in shapes.items():
                weight = torch.randn(shape).div_(shape[1] ** 0.5).bfloat16()
                writer.add(f"model.layers.{i}.{kind}.weight", weight)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                writer.add(f"model.layers.{i}.{norm}.weight", torch.ones(hidden).bfloat16())
        writer.add("model.norm.weight", torch.ones(hidden).bfloat16())
    write_llm_tokenizer(build_llm_tokenizer(["abc"], vocab_size=300), folder)


def write_text(path: Path, num_tokens: int) -> None:
    """Random letters, one token each."""
    letters = torch.randint(97, 123, (num_tokens,), generator=torch.Generator().manual_seed(0))
    text = "".join(map(chr, letters.tolist()))
    path.write_text("\n\n".join(text[i : i + 2000] for i in range(0, num_tokens, 2000)))


def stand_in() -> None:
    """Solvers that allocate what LAPACK's do, and solve nothing."""

    def values(c: Tensor) -> Tensor:
        return c.clone().diagonal().sort().values

    both: Any = namedtuple("both", ["eigenvalues", "eigenvectors"])  # type: ignore[misc]

    def pairs(c: Tensor) -> Any:
        work = torch.zeros(2, *c.shape, dtype=c.dtype)
        return both(work[0, 0] + torch.arange(1, len(c) + 1), c.clone())

    def bottom(c: Any, *, subset_by_index: list[int], **_: Any) -> Any:
        vectors = torch.eye(len(c), subset_by_index[1] + 1, dtype=torch.float64)
        return torch.arange(1.0, vectors.shape[1] + 1, dtype=torch.float64).numpy(), vectors.numpy()

    torch.linalg.eigvalsh, torch.linalg.eigh = values, pairs  # type: ignore[assignment]
    scipy.linalg.eigh = bottom


def child(options: argparse.Namespace) -> None:
    """Builds an adapter and prints its peak, its seconds, and a ratio to know it by."""
    from subspacelab.checkpoints import resolve_reference
    from subspacelab.nullspace.building import build_adapter
    from subspacelab.nullspace.config import BuildSettings

    torch.set_num_threads(options.threads)
    if options.stand_in:
        stand_in()
    place = Path(options.child)
    text, windows = str(place.parent / "text.txt"), options.windows
    settings = BuildSettings(text, windows, options.length, device="cpu", allow_few_tokens=True)
    source, start = resolve_reference(str(place)), time.perf_counter()
    built = build_adapter(
        source, place.parent / "adapter", method="lora_null_v2", rank=options.rank, seed=0, settings=settings
    )
    seconds = time.perf_counter() - start
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    print(json.dumps({"peak_bytes": int(found[1]) * 1024, "seconds": seconds, "summary": built.meta["summary"]}))


def measure(folder: Path, options: argparse.Namespace, src: Path | None) -> dict[str, Any]:
    """What a child takes on the model in `folder`, by the code here or in `src`."""
    kept = ["--windows", "--length", "--rank", "--threads"]
    given = [str(part) for key in kept for part in (key, vars(options)[key[2:]])]
    command = [sys.executable, __file__, "--child", str(folder), *given, *(["--stand-in"] if options.stand_in else [])]
    environment = os.environ | ({"PYTHONPATH": str(src)} if src else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scale(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks and seconds against depth."""
    found: dict[str, Any] = {}
    for depth in options.depths:
        with tempfile.TemporaryDirectory(prefix="calibration_scale_") as temporary:
            folder = Path(temporary) / "model"
            write_model(folder, options.hidden, options.inner, depth)
            write_text(Path(temporary) / "text.txt", 2 * options.windows * options.length)
            for name, src in {"after": None, **({"before": options.before} if options.before else {})}.items():
                one = found[f"{depth} blocks, {name}"] = measure(folder, options, src)
                print(f"{depth} blocks, {name}: {one['peak_bytes'] / 1e9:5.2f} GB, {one['seconds']:.0f} s", flush=True)
    return found


def eigenvectors(dims: list[int], rank: int) -> dict[str, Any]:
    """Wall and CPU seconds of every way to the bottom `rank` + 1 eigenvectors, once each."""
    from subspacelab.nullspace.spectra import smallest_pairs

    found: dict[str, Any] = {}
    for dim in dims:
        generator = torch.Generator().manual_seed(0)
        q = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        c = (q * torch.logspace(0, -6, dim, dtype=torch.float64)) @ q.T
        ways: dict[str, Callable[[], Any]] = {
            "torch.linalg.eigh": lambda c=c: torch.linalg.eigh(c),  # type: ignore[misc]
            "torch.linalg.eigvalsh": lambda c=c: torch.linalg.eigvalsh(c),  # type: ignore[misc]
            "scipy syevr, bottom": lambda c=c: smallest_pairs(c.clone(), rank + 1),  # type: ignore[misc]
        }
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            found[f"{name}, {dim}"] = taken
            print(f"{dim:6} {name:>22}: {taken['wall']:7.1f} s, {taken['cpu']:7.1f} s of CPU", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small widths, the same code")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stand-in", action="store_true", help="solvers that only allocate")
    parser.add_argument("--before", type=Path, help="src of another checkout, measured beside")
    parser.add_argument("--eigenvectors", action="store_true", help="time the solvers instead")
    parser.add_argument("--dims", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    torch.set_num_threads(options.threads)
    options.hidden, options.inner = (128, 344) if options.tiny else (4096, 11008)
    if options.tiny:
        options.length, options.rank, options.dims = 64, 16, [256]
    command = shlex.join(["python", *sys.argv])
    if options.eigenvectors:
        found, holds = eigenvectors(options.dims, options.rank), True
    else:
        found = scale(options)
        peaks = [one["peak_bytes"] for name, one in found.items() if name.endswith("after")]
        holds = max(peaks) <= LIMIT and max(peaks) <= FLAT * min(peaks)
        print(f"claim: at most {LIMIT / 1e9} GB, and within {FLAT - 1:.0%} from depth to depth: {holds}")
    if options.out:
        write_json(options.out, {"command": command, "threads": options.threads, "figures": found})
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
