"""Claim: our reader of byte ranges is no slower than the hub client's `HfFileSystem`, and goes on after a break.

Reads the norm layers of a random 72B (80 blocks, 38 shards of holes, in the order in which the hub stores them) from a
hub on loopback that answers after `--delay` seconds, 8 ranges at a time, by either; then one range whose answer breaks
off in the middle.

    python benchmarks/hub_ranges.py                # a minute
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from tests.unit.checkpoints.range_hub import COMMIT, REPO, RangeHub, serving  # noqa: E402
from tests.unit.norms.zoo import qwen2_72b, write_sparse  # noqa: E402

from subspacelab.core.files import write_json  # noqa: E402

BROKEN = 8 << 20
"""Bytes of the range that breaks off."""


def main() -> None:
    """Prints seconds, requests and what became of the break; exits with 1 if the claim does not hold."""
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="hub_ranges_") as temporary:
        folder = write_sparse(Path(temporary) / "72b", qwen2_72b(), shard_bytes=4_000_000_000)
        with serving(folder) as hub:
            os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path(temporary) / "hf"), "NO_PROXY": "127.0.0.1"}
            ways = {"ours": _ours, "hub client": _theirs}
            found = {name: _measure(hub, way, options.delay) for name, way in ways.items()}
    for name, figures in found.items():
        shown = f"{figures['seconds']:6.2f} s, {figures['requests']} requests for weights; a break: {figures['break']}"
        print(f"{name:<11} {figures['ranges']} ranges in {shown}")
    if options.out:
        write_json(options.out, {"command": shlex.join(["python", *sys.argv]), "delay": options.delay, **found})
    ours, theirs = found.values()
    raise SystemExit(ours["seconds"] > 1.05 * theirs["seconds"] or "read" not in ours["break"])


Reader = Callable[[str, int, int], bytes]


def _measure(hub: RangeHub, way: Callable[[], Reader], delay: float) -> dict[str, Any]:
    """Seconds and requests of one way, headers and sizes known before; and whether a break is mended."""
    from subspacelab.checkpoints import open_reference
    from subspacelab.checkpoints.safetensors_file import DiskFile, read_header
    from subspacelab.norms.survey import survey

    hub.delay = 0.0
    with open_reference(REPO) as checkpoint:
        wanted = {norm.key for norm in survey(checkpoint).norms}
    shards = sorted(hub.root.glob("*.safetensors"))
    placed = [(shard.name, p) for shard in shards for p in read_header(DiskFile(shard), shard.name)]
    ranges = [(name, p.start, p.stop) for name, p in placed if p.info.name in wanted]
    read = way()
    for shard in shards:
        read(shard.name, 0, 8)
    hub.delay, before, begun = delay, len(hub.requests), time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        assert sum(map(len, pool.map(lambda r: read(*r), ranges))) == 161 * 2 * 8192
    seconds, requests = time.perf_counter() - begun, len(hub.requests) - before
    name, sent = shards[0].name, hub.sent[shards[0].name]
    hub.faults.append("drop")
    try:
        assert len(read(name, 1 << 20, (1 << 20) + BROKEN)) == BROKEN
        said = f"read, {(hub.sent[name] - sent) / BROKEN:.2f} times its bytes were sent"
    except Exception as e:  # whatever the client raises is the finding
        said = f"given up ({type(e).__name__})"
    hub.faults.clear()
    return {"seconds": seconds, "requests": requests, "ranges": len(ranges), "break": said}


def _ours() -> Reader:
    from huggingface_hub import hf_hub_url

    from subspacelab.checkpoints.hub import RemoteFile

    files: dict[str, RemoteFile] = {}

    def read(name: str, start: int, stop: int) -> bytes:
        file = files.setdefault(name, RemoteFile(hf_hub_url(REPO, name, revision=COMMIT), name))
        return bytes(file.read(start, stop))

    return read


def _theirs() -> Reader:
    from huggingface_hub import HfFileSystem

    system = HfFileSystem()

    def read(name: str, start: int, stop: int) -> bytes:
        # A file object has one position and is of one thread; without a cache it reads what is asked for alone.
        with system.open(f"{REPO}@{COMMIT}/{name}", cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(stop - start))

    return read


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--delay", type=float, default=0.1, help="seconds before each answer")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
