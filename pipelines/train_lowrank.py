"""Stage `train_lowrank@<arch>`: trains one network to factorise the features, X ~ A @ B at `rank`.

In: data/features. Out: data/lowrank/trained/<arch> (best_model and last as safetensors, history.json, pictures).
Time: about a minute each on 2 cores for the demo. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import move_folder
from subspacelab.lowrank.config import TrainLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.logging import record_training
from subspacelab.lowrank.plots import draw_training
from subspacelab.lowrank.training import train_into, validation_errors
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

FEATURES = Path("data/features")
OUT = Path("data/lowrank/trained")


def main(arch: str) -> None:
    with open_stage("train_lowrank", TrainLowrankConfig, experiment="lowrank", item=arch) as stage:
        features = Features(FEATURES)
        result = train_into(
            features,
            stage.work_dir,
            arch=arch,
            rank=stage.rank,
            seed=stage.seed,
            settings=stage.params,
            log=stage.tracker.log_metrics,
            progress=progress_bar,
        )
        pictures = draw_training(result, validation_errors(result, features))
        record_training(result, features, pictures, stage.tracker)
        move_folder(result.folder, OUT / arch)


if __name__ == "__main__":
    run_stage_script(main)
