"""Stage `scenes`: pictures of words on textured backgrounds, a question and a box each, as parquet.

Out: data/scenes (the schema of textVQA_groundingtask_bbox). Time: half a minute for 800 pictures.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.synthetic.grounding.scenes import SceneSet, ScenesConfig
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("data/scenes")


def main() -> None:
    with open_stage("scenes", ScenesConfig, experiment="demo") as stage:
        SceneSet(stage.params.rows, stage.params.size, stage.seed).save(OUT, progress_bar)


if __name__ == "__main__":
    run_stage_script(main)
