"""Stage `compare_lowrank`: compares networks with the SVD, controls and their untrained start, on the test pictures.

In: data/features, data/lowrank/results/<arch>; data/checkpoints/base and data/scenes (or the study's own pictures),
which judge by the task. Out: reports/lowrank (comparison.csv, rate_distortion.csv, details.json, metrics.json,
svd_nn_comparison.png, task_iou.png, rate_distortion.png). Time: about 80 s on 2 cores for the demo.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from dataclasses import asdict
from pathlib import Path

from subspacelab.core.files import write_json
from subspacelab.pipeline.process import run_stage_script
from subspacelab.lowrank.comparison import compare
from subspacelab.lowrank.config import CompareLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.display import print_comparison
from subspacelab.lowrank.logging import track_comparison
from subspacelab.lowrank.storage_plots import draw_pictures
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

FEATURES = Path("data/features")
RESULTS = Path("data/lowrank/results")
OUT = Path("reports/lowrank")


def main() -> None:
    with open_stage("compare_lowrank", CompareLowrankConfig, experiment="lowrank") as stage:
        comparison = compare(
            Features(FEATURES),
            RESULTS,
            rank=stage.rank,
            progress=progress_bar,
            **asdict(stage.params),
        )
        comparison.save(OUT, metrics="details.json")
        write_json(OUT / "metrics.json", comparison.headline)
        track_comparison(comparison, OUT, draw_pictures(OUT, comparison), stage.tracker)
    print_comparison(comparison)


if __name__ == "__main__":
    run_stage_script(main)
