"""Stage `analyze_norms@<checkpoint>`: norms of embedding vectors and parameters of norm layers of one checkpoint.

In: data/checkpoints/<checkpoint>. Out: reports/norms/<checkpoint>.json and reports/norms/<checkpoint> (two pictures).
Time: seconds; of a checkpoint on the hub only headers, embeddings and norm layers are fetched.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.checkpoints import open_reference
from subspacelab.pipeline.process import run_stage_script
from subspacelab.core.files import write_json
from subspacelab.norms.analysis import analyze
from subspacelab.norms.config import AnalyzeNormsConfig
from subspacelab.norms.plots import draw_pictures
from subspacelab.norms.logging import track_analysis
from subspacelab.norms.display import print_analysis
from subspacelab.pipeline.stage import open_stage
from subspacelab.plotting.terminal import progress_bar

OUT = Path("reports/norms")


def main(checkpoint: str) -> None:
    with open_stage("analyze_norms", AnalyzeNormsConfig, experiment="norms", item=checkpoint) as stage:
        with open_reference(f"pipeline:{checkpoint}") as opened:
            s = stage.params
            analysis = analyze(opened, device=s.device, all_norms=s.all_norms, progress=progress_bar)
        pictures = draw_pictures(OUT / checkpoint, analysis)
        write_json(OUT / f"{checkpoint}.json", analysis.to_json())
        track_analysis(analysis, pictures, stage.tracker)
    print_analysis(analysis)


if __name__ == "__main__":
    run_stage_script(main)
