"""Claim: an analysis of norms reads at most 2 % more than the embeddings, the norm layers and the headers.

Builds a random sharded bf16 Qwen2.5-VL of 1.9 GB with the 3B's width and vocabulary, analyses it from the disk and from
a hub on loopback, and loads it with transformers, each in a child process: bytes, seconds and peak anonymous memory.
From the disk, what was read is what the page cache holds of the files afterwards, having been emptied of them before,
the system's reading ahead included (Linux only; no tmpfs).

    python benchmarks/norms_reading.py                # a minute or two, 2 GB of disk in the temporary folder
"""

import argparse
import ctypes
import mmap
import os
import shlex
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.decompose_memory import Measured, build, measure  # noqa: E402
from tests.unit.checkpoints.range_hub import REPO, serving  # noqa: E402

from subspacelab.checkpoints import canonical_name, open_checkpoint  # noqa: E402
from subspacelab.checkpoints.safetensors_file import LENGTH_BYTES, header_length  # noqa: E402
from subspacelab.core.files import write_json  # noqa: E402
from subspacelab.norms.survey import survey  # noqa: E402

LIMIT = 1.02
LOAD_SCRIPT = """
import sys
from transformers import Qwen2_5_VLForConditionalGeneration
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1])
for name, weight in model.named_parameters():
    if "embed" in name or "norm" in name or "ln_q" in name:
        weight.detach().double().norm(dim=-1).mean()
"""


def main() -> None:
    """Prints bytes, seconds and memory; exits with 1 if the claim does not hold."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="norms_reading_") as temporary:
        folder = Path(temporary) / "random"
        build(folder, options.vocab, options.hidden, options.layers)
        shards = sorted(folder.glob("*.safetensors"))
        needed, on_disk = needed_bytes(folder), sum(shard.stat().st_size for shard in shards)
        empty_cache(shards)
        local = measure(analyze_command(folder, Path(temporary) / "local.json"))
        from_disk = sum(map(cached_bytes, shards))
        with serving(folder) as hub:
            os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path(temporary) / "hf"), "NO_PROXY": "127.0.0.1"}
            remote = measure(analyze_command(REPO, Path(temporary) / "remote.json"))
            sent = sum(count for name, count in hub.sent.items() if name.endswith(".safetensors"))
        empty_cache(shards)
        theirs = measure([sys.executable, "-c", LOAD_SCRIPT, str(folder)])
        loaded = sum(map(cached_bytes, shards))
    print(f"checkpoint on disk                    {on_disk / 1e6:8,.1f} MB")
    print(f"embeddings, norm layers, headers      {needed / 1e6:8,.1f} MB")
    show("norms analyze, from the disk", from_disk, needed, local)
    show("norms analyze, from a loopback hub", sent, needed, remote)
    show("transformers, the whole model", loaded, needed, theirs)
    if options.out:
        ways = {"disk": (from_disk, local), "hub": (sent, remote), "transformers": (loaded, theirs)}
        figures = {
            w: {"share": n / needed, "peak_bytes": m.peak_bytes, "seconds": m.seconds} for w, (n, m) in ways.items()
        }
        write_json(options.out, {"command": shlex.join(["python", *sys.argv]), **figures})
    # Less than what is needed would mean that the measurement is wrong; the system may have dropped a page or two.
    raise SystemExit(max(from_disk, sent) > LIMIT * needed or min(from_disk, sent) < 0.99 * needed)


def show(what: str, read: int, needed: int, measured: Measured) -> None:
    """One line: bytes read, their ratio to what is needed, seconds, memory."""
    taken = f"{measured.seconds:5.1f} s, {measured.peak_bytes / 1e6:6,.0f} MB of anonymous memory"
    print(f"{what:<37} {read / 1e6:8,.1f} MB ({read / needed:.4f}), {taken}")


def needed_bytes(folder: Path) -> int:
    """What has to be read: the tensors that a survey names, and the header of every shard."""
    with open_checkpoint(folder) as checkpoint:
        found = survey(checkpoint)
        assert found.warnings == (), found.warnings
        keys = [e.key for e in found.embeddings] + [n.key for n in found.norms]
        assert all("embed" in key or "norm" in key or "ln_q" in key for key in map(canonical_name, keys))
        tensors = sum(checkpoint.info(key).nbytes for key in keys)
    for shard in folder.glob("*.safetensors"):
        with shard.open("rb") as file:
            tensors += LENGTH_BYTES + header_length(file.read(LENGTH_BYTES), shard.name)
    return tensors


def analyze_command(model: Path | str, output: Path) -> list[str]:
    """The command that a person types."""
    room = [sys.executable, "-m", "subspacelab", "norms", "analyze", "--no-track", "--all-norms", "--device", "cpu"]
    return [*room, "--model", str(model), "--output", str(output)]


def empty_cache(files: list[Path]) -> None:
    """Lets the system forget the pages of these files, as after a restart."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(path: Path) -> int:
    """Bytes of a file that lie in the page cache, by mincore(2)."""
    libc, size = ctypes.CDLL(None, use_errno=True), path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc.mmap.restype = ctypes.c_void_p
    with path.open("rb") as file:
        address = ctypes.c_void_p(
            libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
        )
    if libc.mincore(address, ctypes.c_size_t(size), pages):
        raise OSError(ctypes.get_errno(), "mincore")
    libc.munmap(address, ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
