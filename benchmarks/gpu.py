"""Claim: on one GPU every study computes what it computes on the CPU, at the speeds and in the memory named below.

One command, at most 8 minutes on an H100. Each step is a process of its own with an alarm; what it finds is printed as
JSON and written to --out at once, so that a step that hangs or dies costs no other. Needs neither dvc nor mlflow, and
fetches nothing: every checkpoint is made of random numbers in its true shapes. A package that is missing is named
before anything runs. Exits with 1 when a step fails or a claim does not hold. Speeds are claimed of a GPU alone.

    python benchmarks/gpu.py                        # all steps; benchmarks/results/gpu-<name of the chip>.json
    python benchmarks/gpu.py --tiny --device cpu    # every step on toys, in seconds
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module, metadata
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOR_TESTS = ("pytest", "beartype")


@dataclass(frozen=True)
class Step:
    """One step, its alarm and its claims."""

    name: str
    """Of its function in gpu_steps.py."""
    seconds: int
    """After which it is ended."""
    at_most: dict[str, float] = field(default_factory=dict)
    """Figure -> its largest value."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Figure -> its least value, on a GPU."""


STEPS = (
    Step("versions", 15),
    Step("gpu_tests", 40, at_most={"exit_code": 0}),
    Step("decompositions", 70, at_most={"reconstruction": 1e-6, "orthogonality": 1e-5}),
    Step("feature_svd", 25, at_most={"error_of_ours": 1e-7}, speeds={"ratio": 10}),
    Step("training", 90, at_most={"forward_difference": 1e-4}, speeds={"ratio": 3}),
    Step("vision_tower", 25, at_most={"not_finite": 0}),
    Step("adapter", 130, at_most={"start_difference": 0, "frozen_B_that_moved": 0, "A_that_did_not_move": 0}),
    Step("null_spaces", 20, at_most={"largest_angle": 1e-3}),
    Step("rotations", 65, at_most={"largest_difference": 1e-3}),
)
"""In order; the alarms are 8 minutes in all."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="toys in the place of the true sizes")
    parser.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS], help="only these")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures; of --tiny there is none without")
    args = parser.parse_args()
    if refusal := _refusal(args.device, tiny=args.tiny):
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT / "src"))  # this checkout is measured, whatever is installed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    if args.device == "cpu":  # once for all steps; before forks that use a GPU nothing may have touched it
        for name in ("transformers", "peft", "pandas", "subspacelab.nullspace.building"):
            import_module(name)
    steps = [step for step in STEPS if args.steps is None or step.name in ("versions", *args.steps)]
    results: dict[str, Any] = {"command": shlex.join(["python", *sys.argv])}
    for step in steps:
        results[step.name] = {}
        for found in _run(step, args.device, tiny=args.tiny):
            results[step.name] |= found
            _write(args.out or (None if args.tiny else _place_of(results)), results)
        print(json.dumps({step.name: results[step.name]}), flush=True)
    failed = [f"{step.name}: {words}" for step in steps for words in results[step.name]["broken"]]
    print("".join(f"failed: {words}\n" for words in failed), end="", file=sys.stderr)
    return int(bool(failed))


def _refusal(device: str, *, tiny: bool) -> str | None:
    """Why nothing can be run here, with the remedy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=!~\[; ]", line)[0] for line in project["dependencies"]]
    missing = [name for name in (*names, *FOR_TESTS) if not _has(name)]
    if missing:
        return f"missing packages; pip install {' '.join(missing)}"
    if device == "cpu" and not tiny:
        return "the true sizes are for a GPU; add --tiny"
    if device == "cuda" and subprocess.run([sys.executable, "-c", CUDA]).returncode:
        return "no CUDA device; --tiny --device cpu runs every step on toys"
    return None


CUDA = "import sys, torch; sys.exit(not torch.cuda.is_available())"
"""In a process of its own: a process that has asked cannot start others that use the GPU."""


def _has(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _run(step: Step, device: str, *, tiny: bool) -> Iterator[dict[str, Any]]:
    """What the step finds, as it finds it; then its seconds and what is wrong with it, an alarm that went off too."""
    start, all_found = time.perf_counter(), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="gpu_") as folder:
        for found in _find(step, (device, tiny, Path(folder))):
            all_found |= found
            yield found
    yield {"wall_seconds": time.perf_counter() - start, "broken": _broken(step, all_found, device)}


def _find(step: Step, where: tuple[str, bool, Path]) -> Iterator[dict[str, Any]]:
    """What a process of its own sends, until it is done or its time is over."""
    end = time.perf_counter() + step.seconds
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(step.name, where, there))
    child.start()
    there.close()
    try:
        while here.poll(max(0.0, end - time.perf_counter())):
            yield here.recv()
        yield {"error": f"no end within {step.seconds} s"}
    except EOFError:  # it has closed its end: it is done, or dead
        child.join()
        if child.exitcode:
            yield {"error": f"ended with {child.exitcode}"}
    finally:
        if child.is_alive():
            os.killpg(child.pid or 0, 9)  # with the processes that it has started
        child.join()


def _child(name: str, where: tuple[str, bool, Path], pipe: Connection) -> None:
    """The step in its own group of processes; what libraries print is dropped."""
    os.setpgrp()
    device, tiny, folder = where
    with pipe, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        try:
            steps: Any = import_module("gpu_steps")
            for found in getattr(steps, name)(steps.sizes_of(device, tiny=tiny), folder):
                pipe.send(found)
            uninvited = [module for module in ("dvc", "mlflow") if module in sys.modules]
            if uninvited:
                raise RuntimeError(f"{uninvited} were imported")
        except BaseException as e:  # whatever it is, the other steps run
            words = " ".join(f"{type(e).__name__}: {e} {said.getvalue()}".split())
            pipe.send({"error": words[:500]})


def _broken(step: Step, found: dict[str, Any], device: str) -> list[str]:
    """What went wrong and which claims do not hold."""
    broken = [found["error"]] if "error" in found else []
    for name, most in step.at_most.items():
        if not found.get(name, float("nan")) <= most:
            broken.append(f"{name} is {found.get(name)}, claimed at most {most:g}")
    for name, least in step.speeds.items() if device == "cuda" else ():
        if not found.get(name, float("nan")) >= least:
            broken.append(f"{name} is {found.get(name)}, claimed at least {least:g}")
    return broken


def _place_of(results: dict[str, Any]) -> Path:
    chip = re.sub(r"[^a-z0-9]+", "-", results["versions"].get("chip", "unknown").lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"gpu-{chip}.json"


def _write(path: Path | None, results: dict[str, Any]) -> None:
    from subspacelab.core.files import write_json

    if path is not None:
        write_json(path, results)


if __name__ == "__main__":
    sys.exit(main())
