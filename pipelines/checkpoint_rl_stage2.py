"""Stage `checkpoint_rl_stage2`: rl_stage1 trained further by GRPO, stricter reward; a hub study records a commit.

In: data/checkpoints/rl_stage1. Out: data/checkpoints/rl_stage2, reports/checkpoints/rl_stage2.json, and in
data/checkpoints_path/rl_stage2 the weights after a quarter, a half and three quarters of the steps.
Time: about 2 minutes on 2 cores. A killed training continues to the same bytes.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.checkpoints.references import REPORTS, take_from_hub
from subspacelab.synthetic.display import print_checkpoint
from subspacelab.synthetic.grounding.evaluation import evaluate_checkpoint
from subspacelab.synthetic.logging import record_checkpoint
from subspacelab.synthetic.grounding.plots import draw_checkpoint
from subspacelab.synthetic.grounding.reinforce import RlTraining, train_rl, write_training_path
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

BEFORE = Path("data/checkpoints/rl_stage1")
OUT = Path("data/checkpoints/rl_stage2")
PATH = Path("data/checkpoints_path/rl_stage2")


def main() -> None:
    with open_stage("checkpoint_rl_stage2", RlTraining, experiment="demo") as stage:
        if take_from_hub(stage.study.reference("rl_stage2"), OUT):
            write_training_path(PATH, stage.work_dir, [])
            return
        trained = train_rl(
            BEFORE,
            stage.work_dir,
            training=stage.params,
            stage="rl_stage2",
            seed=stage.seed,
            log=stage.tracker.log_metrics,
            progress=progress_bar,
            path=stage.work_dir / "path",
        )
        trained.save(OUT)
        write_training_path(PATH, stage.work_dir / "path", stage.params.passed())
        evaluation = evaluate_checkpoint(
            OUT, seed=stage.seed, num_scenes=stage.params.evaluated, before=BEFORE, progress=progress_bar
        )
        evaluation.save(REPORTS)
        picture = draw_checkpoint(OUT / "predicted_boxes.png", evaluation)
        record_checkpoint(evaluation, OUT, picture, stage.tracker)
    print_checkpoint(evaluation)


if __name__ == "__main__":
    run_stage_script(main)
