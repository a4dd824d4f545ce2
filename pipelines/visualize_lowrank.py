"""Stage `visualize_lowrank`: channels and errors of a test picture on the picture plane, and the cosine over the rank.

In: data/features, data/lowrank/results/<arch>. Out: reports/lowrank/pictures, reports/lowrank/rank_curve.png.
Time: about 30 s on 2 cores for the demo.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.pipeline.process import run_stage_script
from subspacelab.lowrank.config import VisualizeLowrankConfig
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.logging import track_views
from subspacelab.lowrank.plots import draw_views
from subspacelab.lowrank.visualization import visualize
from subspacelab.pipeline.stage import open_stage

FEATURES = Path("data/features")
RESULTS = Path("data/lowrank/results")
OUT = Path("reports/lowrank/pictures")
CURVE = Path("reports/lowrank/rank_curve.png")


def main() -> None:
    with open_stage("visualize_lowrank", VisualizeLowrankConfig, experiment="lowrank") as stage:
        s = stage.params
        views = visualize(
            Features(FEATURES),
            RESULTS,
            rank=stage.rank,
            image_idx=s.image_idx,
            channels=s.channels,
            device=s.device,
        )
        views.save(OUT)
        *maps, curve = draw_views(OUT, views)
        curve = curve.replace(CURVE)  # a file of its own, which `dvc plots` can show
        track_views(views, [*maps, curve], stage.tracker)


if __name__ == "__main__":
    run_stage_script(main)
