"""Stage `measure_forgetting@<method>`: a method fine-tunes the study's language model; what is forgotten on the way?

In: the checkpoint that pipelines/studies/smollm2.yaml names. Out: reports/smollm2/methods/<method> (results.json,
curves.csv, knowledge.csv, costs.csv). A killed stage goes on where it was.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from dataclasses import replace
from pathlib import Path

from subspacelab.checkpoints import resolve_reference
from subspacelab.core.files import replace_folder
from subspacelab.nullspace.config import ForgettingSettings
from subspacelab.nullspace.forgetting.study import run_study
from subspacelab.nullspace.forgetting.logging import track_forgetting
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("reports/smollm2/methods")
PIPELINE = Path("pipelines/smollm2/dvc.yaml")


def main(method: str) -> None:
    with open_stage(
        "measure_forgetting",
        ForgettingSettings,
        experiment="nullspace",
        item=method,
        study="smollm2",
        pipeline=PIPELINE,
    ) as stage:
        settings, source = replace(stage.params, methods=[method]), resolve_reference(stage.study.reference("llm"))
        log = stage.tracker.log_metrics
        found = run_study(source, stage.work_dir / method, settings=settings, log=log, progress=progress_bar)
        with replace_folder(OUT / method) as folder:
            found.save(folder)
        track_forgetting(found, [], stage.tracker)


if __name__ == "__main__":
    run_stage_script(main)
