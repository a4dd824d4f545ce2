"""A folder in which every command of the command line has once run well: what faults are then tried on."""

from pathlib import Path

from tests.language_models import write_text, write_tiny_lm
from tests.unit.lowrank.caches import write_pictures, write_random_cache
from tests.unit.nullspace.trainings import ROWS
from tests.unit.nullspace.verifications import init_of, trained_of
from tests.unit.rotation.chains import chain_tensors, decompose_chain

from subspacelab.cli import main
from subspacelab.data.instructions import write_instructions
from subspacelab.nullspace.results import write_stats

QUICK = "--device cpu --no-track"
COMMANDS = {
    "decompose": f"rotation decompose --model-id checkpoints/base --output-dir svd/out --rank 4 --include qkv {QUICK}",
    "compare-rotations": "rotation compare --base svd/base --stage1 svd/rl_stage1 --stage2 svd/rl_stage2"
    f" --output-dir rotations --rank 4 {QUICK}",
    "cache": f"lowrank cache --model-id checkpoints/base --images images --output-dir cached --image-size 56 {QUICK}",
    "train-lowrank": "lowrank train --features features --arch Sketch --rank 4 --epochs 2 --batch-size 4"
    f" --results-dir results {QUICK}",
    "compare-lowrank": "lowrank compare --features features --rank 4 --results-dir results --no-track",
    "visualize": "lowrank visualize --features features --rank 4 --results-dir results --channels 2 --no-track",
    "build": "nullspace build --model-id lm --save-path adapter --rank 4 --calib-dataset text.txt"
    f" --calib-loader-size 40 --seq-len 16 --seed 7 {QUICK}",
    "train-adapter": "nullspace train --adapter adapter --data rows.jsonl --output-dir trained --max-steps 2"
    f" --batch-size 4 --max-length 64 {QUICK}",
    "verify": "nullspace verify --trained-model-path adapter --calib-dataset text.txt --calib-loader-size 8"
    f" --seq-len 16 --save-stats stats/measured.json {QUICK}",
    "compare-stats": "nullspace compare-stats --init-stats stats/init.json --trained-stats stats/trained.json"
    " --output-dir stats/compared --no-track",
    "norms": f"norms analyze --model checkpoints/base --output norms.json {QUICK}",
    "sweep": "sweep -S rank=4,8 --dry-run",
    "sync": "runs sync",
    "reap": "runs reap",
    "check": "metrics check trial --reference reference.json --tolerances tolerances.yaml",
    "write": "metrics write trial --reference reference.json --tolerances tolerances.yaml",
    "ui": "ui",
}
"""Name -> its words. Those of the studies run well as they stand; the others need DVC's experiments or a store."""
STUDIES = tuple(COMMANDS)[:11]


def write_inputs(place: Path) -> None:
    """Everything that the commands of the studies read and do not make for one another."""
    decompose_chain(place, chain_tensors(), rank=8, include=r"qkv\.weight")
    write_random_cache(place / "features", pictures=True)
    write_pictures(place / "images", 3)
    write_tiny_lm(place / "lm")
    write_text(place / "text.txt")
    write_instructions(place / "rows.jsonl", ROWS)
    (place / "stats").mkdir()
    write_stats(place / "stats" / "init.json", init_of())
    write_stats(place / "stats" / "trained.json", trained_of())


def run(words: str) -> int:
    """The exit code of a command in this process."""
    try:
        main(words.split())
    except SystemExit as e:
        return int(e.code or 0)
    raise AssertionError("a command always exits")


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Relative name -> bytes of every file, None for a folder."""
    return {p.relative_to(place).as_posix(): p.read_bytes() if p.is_file() else None for p in place.rglob("*")}
