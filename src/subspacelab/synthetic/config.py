"""Settings of the synthetic study: pictures, checkpoints, corpus."""

from subspacelab.synthetic.facts.corpus import CorpusConfig
from subspacelab.synthetic.facts.llm import LlmTraining
from subspacelab.synthetic.grounding.base import BaseTraining
from subspacelab.synthetic.grounding.reinforce import RlTraining
from subspacelab.synthetic.grounding.scenes import ScenesConfig

STAGES = {
    "scenes": ScenesConfig,
    "checkpoint_base": BaseTraining,
    "checkpoint_rl_stage1": RlTraining,
    "checkpoint_rl_stage2": RlTraining,
    "corpus": CorpusConfig,
    "checkpoint_llm": LlmTraining,
}
"""Stage -> class of its settings in params.yaml and in a study."""
