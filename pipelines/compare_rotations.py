"""Stage `compare_rotations`: rotations and updates of weights along base -> rl_stage1 -> rl_stage2, and random ones.

In: data/svd/{base,rl_stage1,rl_stage2}. Out: reports/rotation (layers.csv, modules.csv, curves.csv, details.json,
metrics.json, five pictures). Time: about 35 s for the demo.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from dataclasses import asdict
from pathlib import Path

from subspacelab.core.files import write_json
from subspacelab.pipeline.process import run_stage_script
from subspacelab.rotation.comparison import compare
from subspacelab.rotation.config import CompareRotationsConfig
from subspacelab.rotation.display import print_comparison
from subspacelab.rotation.factors import read_decomposition
from subspacelab.rotation.logging import track_comparison
from subspacelab.rotation.plots import draw_pictures
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

SVD = Path("data/svd")
OUT = Path("reports/rotation")


def main() -> None:
    with open_stage("compare_rotations", CompareRotationsConfig, experiment="rotation") as stage:
        checkpoints = (read_decomposition(SVD / name) for name in ("base", "rl_stage1", "rl_stage2"))
        comparison = compare(*checkpoints, seed=stage.seed, **asdict(stage.params), progress=progress_bar)
        comparison.save(OUT, metrics="details.json", details=False)
        write_json(OUT / "metrics.json", comparison.headline)
        track_comparison(comparison, OUT, draw_pictures(OUT, comparison), stage.tracker)
    print_comparison(comparison)


if __name__ == "__main__":
    run_stage_script(main)
