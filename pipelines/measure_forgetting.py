"""Stage `measure_forgetting`: what fine-tuning makes the study's language model forget, by method.

In: data/checkpoints/llm. Out: reports/forgetting (results.json, curves.csv, knowledge.csv, costs.csv, pareto.png);
empty without methods. Time: on a model of 135 million parameters about 8 minutes of a core per training. A killed stage
goes on after its last finished training.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.core.files import replace_folder
from subspacelab.nullspace.config import MeasureForgettingConfig
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import Stage, open_stage

LLM = Path("data/checkpoints/llm")
OUT = Path("reports/forgetting")


def main() -> None:
    with (
        open_stage(
            "measure_forgetting", MeasureForgettingConfig, experiment="nullspace", tracked=lambda p: bool(p.methods)
        ) as stage,
        replace_folder(OUT) as folder,
    ):
        if stage.params.methods:
            measure(stage, folder)


def measure(stage: Stage[MeasureForgettingConfig], folder: Path) -> None:
    from subspacelab.checkpoints import resolve_reference  # not for nothing: they take seconds to import
    from subspacelab.nullspace.forgetting.display import print_forgetting
    from subspacelab.nullspace.forgetting.logging import track_forgetting
    from subspacelab.nullspace.forgetting.plots import draw_pareto
    from subspacelab.nullspace.forgetting.study import run_study
    from subspacelab.plotting.terminal import progress_bar

    found = run_study(
        resolve_reference(str(LLM)),
        stage.work_dir / "study",
        settings=stage.params,
        log=stage.tracker.log_metrics,
        progress=progress_bar,
    )
    found.save(folder)
    draw_pareto(folder / "pareto.png", found)
    track_forgetting(found, [folder / "pareto.png"], stage.tracker)
    print_forgetting(found)


if __name__ == "__main__":
    run_stage_script(main)
