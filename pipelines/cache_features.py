"""Stage `cache_features`: the base checkpoint's merged vision tokens of every picture of the study.

In: data/scenes (or the study's own pictures), data/checkpoints/base. Out: data/features (shards, index.parquet,
meta.json). Time: 45 s on 2 cores for the demo's 800 pictures. A killed run continues.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.data.references import resolve_pictures
from subspacelab.core.devices import choose_device
from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import move_folder
from subspacelab.lowrank.extraction import CachePlan, cache_features
from subspacelab.lowrank.config import CacheFeaturesConfig
from subspacelab.lowrank.display import print_cache
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("data/features")


def main() -> None:
    with open_stage("cache_features", CacheFeaturesConfig, experiment="lowrank") as stage:
        s = stage.params
        pictures = resolve_pictures(s.images)
        plan = CachePlan(pictures, s.image_size, s.limit, s.batch_size, s.images, s.decode_workers)
        place = stage.work_dir / OUT.name
        cached = cache_features(
            "pipeline:base",
            plan,
            place,
            device=choose_device(s.device),
            log=stage.tracker.log_metrics,
            progress=progress_bar,
        )
        move_folder(place, OUT)
    print_cache(cached)


if __name__ == "__main__":
    run_stage_script(main)
