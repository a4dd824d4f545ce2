"""Stage `corpus`: an invented world in sentences, its facts as questions, and sums with their solutions.

Out: data/corpus (train.txt, calibration.txt, test.txt, facts.jsonl, arithmetic-{train,validation,test}.jsonl).
Time: a second.
"""

import _checkout  # noqa: F401, I001  (first: the code of this checkout)

from pathlib import Path

from subspacelab.synthetic.facts.corpus import CorpusConfig, make_corpus
from subspacelab.pipeline.process import run_stage_script
from subspacelab.pipeline.stage import open_stage

OUT = Path("data/corpus")


def main() -> None:
    with open_stage("corpus", CorpusConfig, experiment="demo") as stage:
        make_corpus(stage.params, seed=stage.seed).save(OUT)


if __name__ == "__main__":
    run_stage_script(main)
