"""What the averages of a verification mean, in words.

The thresholds are those of the published verifier; the first is generous, since a random B of rank 128 has 0.108 on
inputs of width 11008. So the first verdict always says how many times better than random the adapter is.
"""

from dataclasses import dataclass

from subspacelab.nullspace.methods import method_of
from subspacelab.nullspace.stats import Grade, Summary, Verdict

HARDLY_BETTER = 1.5
"""A B within this factor of a random one has found no null space, whatever the threshold says."""


@dataclass(frozen=True)
class Threshold:
    """Where good ends and bad begins; the two values themselves are fair."""

    good: float
    """Good lies beyond this."""
    bad: float
    """Bad lies beyond this."""

    def grade(self, value: float) -> Grade:
        """good, fair or bad; small is good where `good` is the smaller of the two."""
        sign = 1 if self.good > self.bad else -1
        if sign * value > sign * self.good:
            return "good"
        return "bad" if sign * value < sign * self.bad else "fair"


THRESHOLDS = {
    "BX_ratio": Threshold(good=0.1, bad=0.5),
    "ABX_ratio": Threshold(good=1e-4, bad=1e-6),
    "adapter_contribution": Threshold(good=0.01, bad=0.001),
}


def reading(summary: Summary) -> tuple[Verdict, ...]:
    """One verdict per metric of the table."""
    words = {"BX_ratio": _null_space, "ABX_ratio": _learned, "adapter_contribution": _contribution}
    verdicts = []
    for metric, threshold in THRESHOLDS.items():
        value = getattr(summary, metric)
        grade = threshold.grade(value)
        verdicts.append(Verdict(metric, value, grade, words[metric](summary, grade)))
    return tuple(verdicts)


def _null_space(summary: Summary, grade: str) -> str:
    times = summary.times_better_than_random
    against = f"{times:.2g} times better than a random B ({summary.BX_ratio_random:.3g})"
    if times < HARDLY_BETTER:
        against = f"no better than a random B ({summary.BX_ratio_random:.3g}, {times:.2g} times)"
    if not (summary.down_frozen and method_of(summary.method).needs_calibration):
        causes = f"{summary.method} does not keep B in a null space, by its method"
    else:
        causes = "likely causes: B was updated, the rank is too large, or this is other data than the calibration's"
    words = {"good": "the null space was kept", "fair": "the null space was kept in part", "bad": "not in a null space"}
    told = f"{words[grade]}; {against}"
    return told if grade == "good" and times >= HARDLY_BETTER else f"{told}; {causes}"


def _learned(summary: Summary, grade: str) -> str:
    if not summary.trained:
        return "the adapter is as it was built; " + (
            "A is 0 until it is trained" if summary.starts_at_zero else "A holds what was taken out of the weights"
        )
    if grade == "good":
        return "something was learned" if summary.starts_at_zero else _part_of_weights(summary)
    causes = "likely causes: A was frozen, the learning rate is too small, or too few steps"
    return f"{'little' if grade == 'fair' else 'nothing'} was learned; {causes}"


def _part_of_weights(summary: Summary) -> str:
    return f"A B holds part of the weights from the start; the change itself is {summary.DeltaX_ratio:.3g} of ||x||"


def _contribution(summary: Summary, grade: str) -> str:
    share = f"the adapter makes {100 * summary.adapter_contribution:.3g} % of the layers' output"
    if grade == "good" or not summary.trained:
        return share
    causes = "the learning rate is too small, too few steps, the rank is too small, or this is unlike the training data"
    return f"{share}, which is {'little' if grade == 'fair' else 'next to nothing'}; likely causes: {causes}"
