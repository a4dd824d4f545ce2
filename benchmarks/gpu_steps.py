"""The steps of benchmarks/gpu.py, in its order: each yields its figures as it finds them.

Every checkpoint is made of random numbers in its true shapes, in the step's own folder.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ("base", "stage1", "stage2")
Figures = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What the steps compute on; the defaults are the true sizes."""

    device: str = "cuda"
    matrices: tuple[tuple[int, int], ...] = ((2048, 2048), (11008, 2048), (3420, 1280), (151936, 2048))
    tokens: int = 256
    dim: int = 2048
    rank: int = 128
    pictures: int = 48
    tower: tuple[int, int, int, int, int] = (32, 1280, 3420, 16, 2048)
    """Depth, width, inner width, heads, width of a token."""
    pixels: int = 448
    """Side of a picture."""
    tower_batches: int = 8
    llama: tuple[int, int, int] = (4096, 11008, 32)
    """Width, inner width, heads of Llama-2-7B."""
    vocabulary: int = 32000
    windows: int = 200
    small: tuple[int, int, int] = (512, 1376, 8)
    """The same of the model that both devices calibrate on in float32."""
    chain: tuple[int, int] = (2048, 11008)
    """Width and inner width of Qwen2.5-VL-3B."""

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to time."""
        return self.device == "cuda"


TINY = Sizes(
    matrices=((96, 64), (200, 80)),
    tokens=16,
    dim=32,
    rank=4,
    pictures=20,
    tower=(2, 32, 48, 4, 48),
    pixels=56,
    tower_batches=1,
    llama=(48, 80, 4),
    vocabulary=64,
    windows=80,
    small=(32, 64, 4),
    chain=(32, 64),
)


def sizes_of(device: str, *, tiny: bool) -> Sizes:
    """The true sizes or toys, on this device."""
    return replace(TINY if tiny else Sizes(), device=device)


def versions(sizes: Sizes, folder: Path) -> Figures:
    """What it ran on."""
    import torch

    names = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
    chip = torch.cuda.get_device_name() if sizes.is_gpu else f"CPU {torch.backends.cpu.get_cpu_capability()}"
    yield {"chip": chip, "python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0))}
    yield {"packages": {name: metadata.version(name) for name in names}, "cuda": torch.version.cuda}


def gpu_tests(sizes: Sizes, folder: Path) -> Figures:
    """`pytest -m gpu` on the files that have such tests; they are skipped without a GPU."""
    files = [str(p) for p in (ROOT / "tests" / "unit").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", *files]
    plain = [word for word in command if word not in ("-n", "0")] if find_spec("xdist") is None else command
    done = subprocess.run(plain, cwd=ROOT, capture_output=True, text=True)
    yield {"said": done.stdout.strip().splitlines()[-1:], "exit_code": done.returncode}


def decompositions(sizes: Sizes, folder: Path) -> Figures:
    """`linalg.svd` of each shape, then `torch.linalg.svd` in float32 on the same device: seconds, errors, peak."""
    import torch

    from subspacelab.linalg.svd import orthogonality_error, reconstruction_error, svd

    methods: Any = import_module("svd_methods")
    warm = methods.weight(64, 64, sizes.device)
    svd(warm), methods.float32_lapack(warm.float())  # the first call of each loads its library
    worst = {"reconstruction": 0.0, "orthogonality": 0.0}
    for m, n in sizes.matrices:
        w = methods.weight(m, n, sizes.device)
        single, of_shape = w.float(), dict[str, Any]()
        for name, method in (("ours", lambda w=w: svd(w)), ("torch", lambda s=single: methods.float32_lapack(s))):
            peak = _peak_from_here(sizes)
            seconds, _, result = methods.timed(method, sizes.device)
            errors = {"reconstruction": reconstruction_error(w, result), "orthogonality": orthogonality_error(result)}
            of_shape[name] = {"seconds": seconds, "peak_bytes": peak(), **errors}
            if name == "ours":
                worst = {key: max(value, errors[key]) for key, value in worst.items()}
            del result
            yield {f"{m} x {n}": of_shape, **worst}  # what is known, should the next be too slow
        if sizes.is_gpu:
            torch.cuda.empty_cache()


def feature_svd(sizes: Sizes, folder: Path) -> Figures:
    """The exact SVD of a batch of features against the loop; benchmarks/svd_baseline.py."""
    found = _benchmark("svd_baseline", sizes, folder, "--pictures", str(sizes.pictures // 3))
    yield found | {"error_of_ours": found["errors"]["ours"]}


def training(sizes: Sizes, folder: Path) -> Figures:
    """ResMLP and MLP: samples per second of our loop and a plain one, and the same forward pass on both devices."""
    import torch

    from subspacelab.lowrank.architectures import ModelSpec, build_model

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, sizes.tokens, sizes.dim, generator=generator)
    difference = 0.0
    for arch in ("ResMLP", "MLP"):
        model = build_model(ModelSpec(arch=arch, tokens=sizes.tokens, dim=sizes.dim, rank=sizes.rank), seed=0).eval()
        with torch.no_grad():
            here = model(x)[2]
            there = model.to(sizes.device)(x.to(sizes.device))[2].cpu()
        difference = max(difference, ((there - here).norm() / here.norm()).item())
        yield {"forward_difference": difference}
    slowest = float("inf")
    for arch in ("ResMLP", "MLP"):
        found = _benchmark("train_lowrank", sizes, folder, "--arch", arch, "--pictures", str(sizes.pictures))
        slowest = min(slowest, found["ratio"])
        yield {arch: found, "ratio": slowest}


def vision_tower(sizes: Sizes, folder: Path) -> Figures:
    """Pictures of 448 x 448 through a tower of the 3B's sizes, read from a checkpoint."""
    import torch
    from safetensors.torch import save_file
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    from subspacelab.checkpoints import resolve_reference
    from subspacelab.models.vision_tower import load_vision_tower

    names = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size")
    config: dict[str, Any] = dict(zip(names, sizes.tower, strict=True))
    config["fullatt_block_indexes"] = [i for i in range(sizes.tower[0]) if i % 8 == 7]
    with torch.device(sizes.device):
        made = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**config))
    tensors = {f"visual.{name}": p.detach().bfloat16().cpu().contiguous() for name, p in made.named_parameters()}
    del made
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": config}))
    peak, start = _peak_from_here(sizes), time.perf_counter()
    tower = load_vision_tower(resolve_reference(str(folder)), torch.device(sizes.device))
    yield {"parameters": sum(t.numel() for t in tensors.values()), "load_seconds": time.perf_counter() - start}
    batch = 16
    pictures = torch.randint(0, 256, (batch, sizes.pixels, sizes.pixels, 3), dtype=torch.uint8)
    features = tower.features(pictures)
    start = time.perf_counter()
    for _ in range(sizes.tower_batches):
        tower.features(pictures)  # comes back on the CPU, so that all is done
    rate = batch * sizes.tower_batches / (time.perf_counter() - start)
    finite = bool(torch.isfinite(features).all())
    yield {"pictures_per_second": rate, "peak_bytes": peak(), "shape": list(features.shape), "not_finite": not finite}


def adapter(sizes: Sizes, folder: Path) -> Figures:
    """Build, 10 steps and verify of a two-block Llama at 7B widths, stored in bfloat16."""
    import torch

    from subspacelab.checkpoints import read_tensors
    from subspacelab.core.files import read_json

    _write_llama(folder / "lm", sizes.llama, sizes, torch.bfloat16)
    text = ["--calib-dataset", str(_write_text(folder / "text.txt", sizes))]
    rows = [json.dumps({"query": f"w{i} w{i + 1} w{i + 2}", "response": f"w{i + 3} w{i + 4}"}) for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    built, out, stats = folder / "adapter", folder / "out", folder / "stats.json"
    length = ["--seq-len", str(2 * sizes.tokens)]
    lines = {
        "build": ["build", "--model-id", str(folder / "lm"), "--save-path", str(built), "--rank", str(sizes.rank)]
        + [*text, *length, "--calib-loader-size", str(sizes.windows)],
        "train": ["train", "--adapter", str(built), "--data", str(folder / "rows.jsonl"), "--output-dir", str(out)]
        + ["--max-steps", "10", "--batch-size", "4", "--lr", "1e-3"],
        "verify": ["verify", "--trained-model-path", str(out / "ft"), "--save-stats", str(stats), *text, *length]
        + ["--calib-loader-size", "8"],
    }
    for name, line in lines.items():
        peak, start = _peak_from_here(sizes), time.perf_counter()
        _command("nullspace", *line, "--device", sizes.device)
        yield {name: {"seconds": time.perf_counter() - start, "peak_bytes": peak()}}
        if name == "build":
            yield {"start_difference": read_json(built / "nullspace.json")["start_difference"]}
    before, after = (read_tensors(place / "adapter_model.safetensors")[0] for place in (built, out / "ft"))
    moved = sum(not torch.equal(before[key], after[key]) for key in before if "lora_A" in key)
    still = sum(torch.equal(before[key], after[key]) for key in before if "lora_B" in key)
    yield {"frozen_B_that_moved": moved, "A_that_did_not_move": still, "summary": read_json(stats)["summary"]}


def null_spaces(sizes: Sizes, folder: Path) -> Figures:
    """The bases that a float32 model calibrates to, on the CPU and here, where the spectrum has a gap above 1.01."""
    import torch

    from subspacelab.checkpoints import read_tensors
    from subspacelab.core.files import read_json
    from subspacelab.linalg.subspaces import principal_angles

    _write_llama(folder / "lm", sizes.small, sizes, torch.float32)
    text = ["--calib-dataset", str(_write_text(folder / "text.txt", sizes))]
    tensors = []
    for when, device in (("on_cpu", "cpu"), ("here", sizes.device)):
        line = ["build", "--model-id", str(folder / "lm"), "--save-path", str(folder / when), *text]
        line += ["--rank", str(sizes.rank), "--seq-len", str(sizes.tokens), "--calib-loader-size", str(sizes.windows)]
        start = time.perf_counter()
        _command("nullspace", *line, "--device", device)
        tensors.append(read_tensors(folder / when / "adapter_model.safetensors")[0])
        yield {when: {"seconds": time.perf_counter() - start}}
    angles = {}
    for layer in read_json(folder / "on_cpu" / "nullspace.json")["layers"]:
        if layer["gap"] is None or layer["gap"] > 1.01:
            key = f"base_model.model.{layer['module']}.lora_A.weight"
            angles[layer["module"]] = principal_angles(*(of[key].double().T for of in tensors)).max().item()
    yield {"largest_angle": max(angles.values(), default=float("nan")), "layers_with_a_gap": len(angles)}


def rotations(sizes: Sizes, folder: Path) -> Figures:
    """Decompose and compare of three two-layer checkpoints at 3B widths, on the CPU and here."""
    from subspacelab.rotation import compare, decompose

    _write_chain(folder, sizes)
    tables = []
    for when, device in (("on_cpu", "cpu"), ("here", sizes.device)):
        start = time.perf_counter()
        decomposed = [decompose(str(folder / name), device=device) for name in CHAIN]
        between = time.perf_counter()
        tables.append(compare(*decomposed, null_draws=0, device=device).layers.select_dtypes("float"))
        yield {when: {"decompose_seconds": between - start, "compare_seconds": time.perf_counter() - between}}
    # A measure that is rounding alone, such as an angle of nothing, is told by a share of the column's size.
    difference = (tables[1] - tables[0]).abs() / (tables[0].abs() + 1e-3 * tables[0].abs().max())
    worst = difference.max().fillna(0)
    yield {"largest_difference": float(worst.max()), "in_column": str(worst.idxmax()), "weights": len(tables[0])}


def _peak_from_here(sizes: Sizes) -> Callable[[], int]:
    """Tells the most memory held since now: of the GPU, or on a CPU the largest resident size of the process."""
    import torch

    if not sizes.is_gpu:
        return lambda: getrusage(RUSAGE_SELF).ru_maxrss * 1024
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated


def _benchmark(name: str, sizes: Sizes, folder: Path, *words: str) -> dict[str, Any]:
    """The figures of another benchmark, at these sizes."""
    module, out = import_module(name), folder / f"{name}.json"
    for constant, value in {"TOKENS": sizes.tokens, "DIM": sizes.dim, "RANK": sizes.rank}.items():
        setattr(module, constant, value)
    sys.argv = [name, "--device", sizes.device, "--out", str(out), *words]
    module.main()  # exit code 1 is a claim of its own
    return {key: value for key, value in json.loads(out.read_text()).items() if key not in ("command", "cpu")}


def _command(*words: str) -> None:
    """A command of `subspacelab` in this process; RuntimeError with what it says when it fails."""
    from subspacelab.cli import main as cli

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            cli([*words, "--no-track"])
        except SystemExit as e:
            if e.code:
                raise RuntimeError(f"{' '.join(words[:2])}: {said.getvalue().strip()}") from e


def _write_llama(folder: Path, widths: tuple[int, int, int], sizes: Sizes, dtype: Any) -> None:
    """A random Llama of two blocks with a tokenizer whose words are w0, w1 ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    width, inner, heads = widths
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=2,
        tie_word_embeddings=False,
        **{"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
    )
    torch.manual_seed(0)
    with torch.device(sizes.device):
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    special = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    words = special | {f"w{i}": i + 3 for i in range(sizes.vocabulary - 3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def _write_text(path: Path, sizes: Sizes) -> Path:
    """Random words, the first more often than the last: enough for every window."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = (sizes.vocabulary - 3) * torch.rand(2 * sizes.windows * sizes.tokens * 2, generator=generator) ** 2
    path.write_text(" ".join(f"w{i}" for i in ids.long().tolist()))
    return path


def _write_chain(folder: Path, sizes: Sizes) -> None:
    """Two language blocks at these widths, and twice a change of a few hundredths, of low rank and dense; bfloat16."""
    import torch
    from safetensors.torch import save_file

    weight: Any = import_module("svd_methods").weight
    width, inner = sizes.chain
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 8, width)}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.down_proj": (width, inner)}  # v, o and up have the same shapes
    tensors = {f"model.layers.{i}.{name}.weight": weight(*s, "cpu") for i in range(2) for name, s in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    for name in CHAIN:
        for key, w in tensors.items() if name != CHAIN[0] else ():
            up, down = (torch.randn(size, 4, generator=generator) for size in w.shape)
            dense = torch.randn(w.shape, generator=generator)
            tensors[key] = (w.float() + 1e-3 * (up @ down.T) + 4e-4 * dense).bfloat16()
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
