"""What the demo's trainings set alike."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from subspacelab.synthetic.facts.llm import LlmTraining
from subspacelab.synthetic.grounding.base import BaseTraining
from subspacelab.synthetic.grounding.reinforce import RlTraining
from subspacelab.training.fit import Training

KINDS = (BaseTraining, LlmTraining, RlTraining)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_that_of_the_settings_and_its_rate_peaks_at_the_learning_rate(kind: type[Training]) -> None:
    training = kind(steps=40, learning_rate=0.5, clip=3.0, snapshot_every=7)
    plan = training.plan(Path("work"), name="x")
    assert (plan.num_steps, plan.clip, plan.snapshot_every) == (40, 3.0, 7)
    assert max(plan.learning_rate(step) for step in range(40)) == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_belongs_to_the_name_and_to_every_setting(kind: type[Training]) -> None:
    training = kind()
    plans = [training.plan(Path("s"), name="x"), training.plan(Path("s"), name="y")]
    other = {"reward": "pointing", "sizes": replace(training.sizes, depth=77) if hasattr(training, "sizes") else None}
    changes = [{f.name: other.get(f.name, 77)} for f in fields(training)]
    plans += [replace(training, **change).plan(Path("s"), name="x") for change in changes]
    assert len({plan.fingerprint for plan in plans}) == 2 + len(fields(training))


def test_a_curve_has_a_point_after_every_so_many_steps_and_after_the_last() -> None:
    training = Training(steps=10)
    assert [done for done in range(1, 11) if training.is_due(4, done)] == [4, 8, 10]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["steps", "snapshot_every", "learning_rate", "clip"])
def test_a_setting_out_of_range_is_named(kind: type[Training], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: must be .* got -1"):
        kind(**{name: -1})


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(BaseTraining, "pool"), (BaseTraining, "batch_size"), (RlTraining, "group"), (RlTraining, "temperature")]
    + [(LlmTraining, "recall_every"), (RlTraining, "held_out_every")],
)
def test_settings_with_which_a_training_could_not_end_are_refused_before_it_begins(
    kind: type[Training], setting: str
) -> None:
    with pytest.raises(ValueError, match=f"{setting}: must be .* got 0"):
        kind(**{setting: 0})
