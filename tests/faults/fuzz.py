"""Seeded, structure-aware fuzzing of every command: whatever comes in, one line goes out, and nothing is lost.

`python tests/faults/fuzz.py [--target NAME ...] [--mutants 300] [--seed 0] [--out FILE.json]`; one mutant again, alone,
with all that it printed: `--only TARGET:INDEX --verbose`. A folder in which every command has run well is built once;
each mutant is a forked process in its own damaged copy of a part of it. Exit code 1 if any mutant is bad.
"""

import argparse
import importlib
import json
import os
import pkgutil
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRACKING": "off"}
for _name in [n for n in os.environ if n.startswith(("DVC_", "MLFLOW_"))] + ["VERBOSE"]:
    os.environ.pop(_name, None)
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402

torch.set_num_threads(1)  # no other thread may exist when a mutant is forked

from tests.faults.fuzz_inputs import build_template  # noqa: E402
from tests.faults.fuzz_judge import BAD, GOOD, HOME, Judgement, Ran, judge, snapshot  # noqa: E402
from tests.faults.fuzz_mutant import Mutant, start  # noqa: E402
from tests.faults.fuzz_targets import TARGETS, Target, copy_parts  # noqa: E402

STILL = 6.0
"""Seconds without any work after which a process is taken to wait for ever."""


@dataclass
class Tally:
    """What became of the mutants of one target."""

    target: str
    counts: Counter = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Slot:
    """Where one mutant at a time runs: always in the same folder, in which its template was built too.

    Some results name the folder of their inputs, and must find it where it was.
    """

    def __init__(self, place: Path, number: int) -> None:
        self.folder, self.template, self.part, self.log, self.modules = (
            place / f"{kind}-{number}" for kind in ("slot", "template", "part", "log", "modules")
        )
        self.pristine: dict[str, str] = {}

    def take(self, target: Target) -> None:
        """Makes ready for the mutants of a target."""
        shutil.rmtree(self.part, ignore_errors=True)
        copy_parts(self.template, self.part, target)
        self.pristine = snapshot(self.part)


def main() -> int:
    given = parse()
    names = [given.only.partition(":")[0]] if given.only else given.target or list(TARGETS)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Path(folder).resolve()
        slots = [Slot(place, number) for number in range(1 if given.only else os.cpu_count() or 1)]
        prepare(place, slots, {part for name in names for part in TARGETS[name].parts})
        if given.only:
            tally = run_target(slots, names[0], [int(given.only.partition(":")[2])], given.seed, verbose=True)
            return bool(tally.bad)
        tallies = []
        for name in names:
            tallies.append(run_target(slots, name, range(given.mutants), given.seed, verbose=given.verbose))
            show_kinds(tallies[-1])
    print(table(tallies))
    if given.out:
        given.out.write_text(json.dumps([bad for t in tallies for bad in t.bad], indent=1) + "\n")
    return int(any(t.bad for t in tallies))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--mutants", type=int, default=300, help="of every target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="every bad mutant, as JSON")
    parser.add_argument("--only", metavar="TARGET:INDEX", help="one mutant alone")
    parser.add_argument("--verbose", action="store_true", help="what each mutant is, and prints")
    return parser.parse_args()


def prepare(place: Path, slots: list[Slot], parts: Collection[str]) -> None:
    """Builds the templates of `parts` in processes of their own, and imports what those came to import.

    Nothing is computed here: a thread that a library starts would be missing in the forked mutants.
    """
    (place / "matplotlib").mkdir()
    os.environ["MPLCONFIGDIR"] = str(place / "matplotlib")
    import subspacelab

    for module in pkgutil.walk_packages(subspacelab.__path__, "subspacelab."):
        if "mlflow" not in module.name and "served" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    builders = {_start_builder(slot, parts): slot for slot in slots}
    failed = [slot for pid, slot in builders.items() if os.waitpid(pid, 0)[1]]
    if failed:
        raise SystemExit(f"the template could not be built:\n{failed[0].log.read_text()[-3000:]}")
    for name in json.loads(slots[0].modules.read_text()):
        if name not in sys.modules and not name.startswith(("__", "six.moves")):
            with suppress(Exception):
                importlib.import_module(name)


def _start_builder(slot: Slot, parts: Collection[str]) -> int:
    """A process that builds the template of a slot; in the end it says what it had to import."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    log = os.open(slot.log, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        home = slot.folder / "box" / HOME
        build_template(home, parts)
        shutil.move(home, slot.template)
        shutil.rmtree(slot.folder)
        slot.modules.write_text(json.dumps(sorted(sys.modules)))
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def run_target(slots: list[Slot], name: str, indices: Iterable[int], seed: int, *, verbose: bool = False) -> Tally:
    """Runs the mutants of one target, one in each slot at a time."""
    target, tally, begun = TARGETS[name], Tally(name), time.monotonic()
    for slot in slots:
        slot.take(target)
    free, running, waiting = list(slots), dict[int, tuple[Mutant, Slot]](), list(indices)[::-1]
    while running or waiting:
        while free and waiting:
            slot = free.pop()
            mutant = start(slot.folder, slot.part, target, seed, waiting.pop())
            running[mutant.pid] = mutant, slot
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid in running:
            mutant, slot = running.pop(pid)
            ran = Ran.read(mutant.folder, target, status, usage, hung=mutant.hung)
            finish(tally, judge(mutant.folder, slot.pristine, ran), ran, mutant, seed, verbose)
            free.append(slot)
        else:
            look_after(mutant for mutant, _ in running.values())
            time.sleep(0.003)
    tally.seconds = time.monotonic() - begun
    return tally


def look_after(running: Iterable[Mutant]) -> None:
    """Ends the mutants that stand still; those that work too long the system ends itself."""
    now = time.monotonic()
    for mutant in running:
        worked = mutant.cpu_ticks()
        if worked != mutant.worked:
            mutant.worked, mutant.since = worked, now
        elif now - mutant.since > STILL:
            mutant.hung = True
            mutant.kill()


def finish(tally: Tally, found: Judgement, ran: Ran, mutant: Mutant, seed: int, verbose: bool) -> None:
    tally.counts[found.verdict] += 1
    if verbose:
        print(f"{tally.target}:{mutant.index} {found.verdict}: {ran.run.words} | {ran.said}")
        print(ran.stderr, found.detail, ran.trace if found.verdict in BAD else "")
    if found.verdict in BAD:
        which = {"target": tally.target, "seed": seed, "index": mutant.index}
        what = {"command": ran.run.words, "mutation": ran.said}
        tally.bad.append(which | what | asdict(found) | {"stderr": ran.stderr[-2000:], "trace": ran.trace[-3000:]})
    mutant.kill()  # what it may have started
    shutil.rmtree(mutant.folder)


def show_kinds(tally: Tally) -> None:
    """The bad mutants of a target by kind, the most frequent first."""
    counts = " ".join(f"{verdict}={tally.counts[verdict]}" for verdict in (*GOOD, *BAD) if tally.counts[verdict])
    print(f"{tally.target}: {counts} ({tally.seconds:.0f} s)", flush=True)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for bad in sorted(tally.bad, key=lambda bad: bad["index"]):
        kinds.setdefault(f"{bad['verdict']}: {bad['kind']}", []).append(bad)
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = members[0]
        print(f"    {len(members)} {kind} [:{first['index']} {first['command'][:60]} | {first['mutation'][:160]}]")
    sys.stdout.flush()


def table(tallies: list[Tally]) -> str:
    """Verdicts by target, in Markdown."""
    rows = [["target", *GOOD, *BAD, "seconds"]]
    rows += [[t.target, *(str(t.counts[v]) for v in (*GOOD, *BAD)), f"{t.seconds:.0f}"] for t in tallies]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
