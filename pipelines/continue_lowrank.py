"""Stage `continue_lowrank@<arch>`: more epochs from the best model of `train_lowrank@<arch>`.

In: data/features, data/lowrank/trained/<arch>. Out: data/lowrank/results/<arch>. With 0 additional epochs (the
default) the trained model is copied unchanged, in a second. A killed training continues.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

import shutil
from pathlib import Path

from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import move_folder, replace_folder
from subspacelab.lowrank.config import ContinueLowrankConfig
from subspacelab.pipeline.stage import open_stage

FEATURES = Path("data/features")
TRAINED = Path("data/lowrank/trained")
OUT = Path("data/lowrank/results")


def main(arch: str) -> None:
    with open_stage(
        "continue_lowrank", ContinueLowrankConfig, experiment="lowrank", item=arch, tracked=lambda p: p.epochs > 0
    ) as stage:
        if stage.params.epochs == 0:
            with replace_folder(OUT / arch) as partial:
                shutil.copytree(TRAINED / arch, partial, dirs_exist_ok=True)
            return
        from subspacelab.lowrank.features import Features  # not for nothing: they take seconds to import
        from subspacelab.lowrank.logging import record_training
        from subspacelab.lowrank.plots import draw_training
        from subspacelab.lowrank.training import resume_training, validation_errors
        from subspacelab.plotting.terminal import progress_bar

        features = Features(FEATURES)
        result = resume_training(
            features,
            stage.work_dir,
            arch=arch,
            epochs=stage.params.epochs,
            source=TRAINED / arch,
            log=stage.tracker.log_metrics,
            progress=progress_bar,
        )
        pictures = draw_training(result, validation_errors(result, features))
        record_training(result, features, pictures, stage.tracker)
        move_folder(result.folder, OUT / arch)


if __name__ == "__main__":
    run_stage_script(main)
