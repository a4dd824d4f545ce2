"""Stage `judge_updates`: evaluates parts and predictions of stage 2's update by the score of rebuilt checkpoints.

In: data/checkpoints/{rl_stage1,rl_stage2}, data/checkpoints_path/rl_stage2. Out: reports/rotation/judged (judged.csv,
judged_updates.png); the table is empty if stage 2 comes from the hub, since its task is another. Time: 3 to 4 minutes
on 2 cores. A killed run continues.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from subspacelab.checkpoints.references import POINTER_NAME
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar
from subspacelab.rotation.config import JudgeUpdatesConfig
from subspacelab.rotation.display import print_judgement
from subspacelab.rotation.judge_plots import draw_judgement
from subspacelab.rotation.judgement import PICTURE, Earlier, Judgement, judge
from subspacelab.rotation.logging import track_judgement
from subspacelab.synthetic.grounding.evaluation import TRAINED_SIZE, evaluate
from subspacelab.synthetic.grounding.model import GroundingModel
from subspacelab.synthetic.grounding.reinforce import read_training_path
from subspacelab.synthetic.grounding.scenes import render_scenes, split_seed

CHECKPOINTS = Path("data/checkpoints")
PATH = Path("data/checkpoints_path/rl_stage2")
OUT = Path("reports/rotation/judged")


def main() -> None:
    with open_stage("judge_updates", JudgeUpdatesConfig, experiment="rotation") as stage:
        if (CHECKPOINTS / "rl_stage2" / POINTER_NAME).exists():
            judged = Judgement.empty()
        else:
            params, passed, label = stage.params, read_training_path(PATH), "render held-out scenes"
            scenes = render_scenes(
                split_seed(stage.seed, "held_out"), params.evaluated, TRAINED_SIZE, label, progress_bar
            )

            def score(folder: Path) -> Float[Tensor, " scenes"]:
                checkpoint = GroundingModel.load(folder)
                return evaluate(checkpoint.model, checkpoint.tokenizer, scenes).ious

            judged = judge(
                CHECKPOINTS / "rl_stage1",
                CHECKPOINTS / "rl_stage2",
                score,
                stage.work_dir,
                ranks=params.ranks,
                scales=params.scales,
                earlier={p.step: Earlier(PATH / f"step{p.step}", p.of_steps, p.of_rates) for p in passed},
                seed=stage.seed,
                progress=progress_bar,
            )
        judged.save(OUT)
        draw_judgement(judged, OUT / PICTURE, score="mean IoU")
        track_judgement(judged, OUT / PICTURE, stage.tracker)
    print_judgement(judged)


if __name__ == "__main__":
    run_stage_script(main)
