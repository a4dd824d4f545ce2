"""Stage `decompose@<checkpoint>`: the SVD of every weight matrix of one checkpoint of the study.

In: data/checkpoints/<checkpoint>. Out: data/svd/<checkpoint> (one safetensors file of U, S, Vh per weight, index.json).
Time: seconds for the demo; about 14 minutes on 2 cores for Qwen2.5-VL-3B. A killed run continues.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from dataclasses import asdict
from pathlib import Path

from subspacelab.checkpoints import resolve_reference
from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import move_folder
from subspacelab.core.ownership import require_own_entries
from subspacelab.rotation.config import DecomposeConfig
from subspacelab.rotation.decomposition import decompose_into
from subspacelab.rotation.earlier import read_earlier
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("data/svd")


def main(checkpoint: str) -> None:
    out = OUT / checkpoint
    with open_stage("decompose", DecomposeConfig, experiment="rotation", item=checkpoint) as stage:
        require_own_entries(out, read_earlier(out).entries, "a decomposed checkpoint")
        source = resolve_reference(f"pipeline:{checkpoint}")
        log = stage.tracker.log_metrics
        decompose_into(source, stage.work_dir, **asdict(stage.params), log=log, progress=progress_bar)
        move_folder(stage.work_dir / source.name, out)


if __name__ == "__main__":
    run_stage_script(main)
