"""The result of `verify`: statistics by layer, their file, and verdicts in words."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from subspacelab.core.files import expanded, read_json, real_path, write_json
from subspacelab.core.ownership import require_same_job
from subspacelab.core.settings import validate
from subspacelab.nullspace.inits import method_of

Grade = Literal["good", "fair", "bad"]
KEYS = ("model_path", "calib_dataset", "num_layers", "stats", "summary", "verdicts")


@dataclass(frozen=True)
class LayerStats:
    """One layer's norms and ratios; unless stated otherwise, over the sampled tokens in the adapted model."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    layer: str
    """Module name."""
    samples: int
    """Number of sampled tokens."""
    in_features: int
    """Width of an input."""
    rank: int
    """Rows of B."""
    out_features: int
    """Width of an output."""
    X_norm: float
    """mean ||x||."""
    BX_norm: float
    """mean ||B x||."""
    ABX_norm: float
    """mean ||A B x||."""
    ResidualX_norm: float
    """mean ||W_res x||."""
    FullOutput_norm: float
    """mean ||W_res x + A B x||, without the layer's bias."""
    BX_ratio: float
    """||Q X||_F / ||X||_F over all tokens; Q is an orthonormal basis of B's rows, as in the report of `build`."""
    ABX_ratio: float
    """mean ||A B x|| / mean ||x||."""
    adapter_contribution: float
    """mean ||A B x|| / mean ||W_res x + A B x||, as a share of 1."""
    B_weight_norm: float
    """||B||_F."""
    A_weight_norm: float
    """||A||_F."""
    Residual_weight_norm: float
    """||W_res||_F."""
    B_orthonormal: bool
    """Whether B B^T = I, so that Q is B up to rounding."""
    BX_ratio_bos: float
    """BX_ratio of the first token of each window alone: the tokenizer's begin token if there is one."""
    BX_ratio_rest: float
    """BX_ratio of all the other tokens."""
    BX_ratio_mean_norms: float
    """mean ||Q x|| / mean ||x||."""
    BX_ratio_median: float
    """median of ||Q x|| / ||x||."""
    BX_ratio_random: float
    """sqrt(rank / in_features): the root mean square over random B with orthonormal rows."""
    BX_ratio_optimum: float
    """sqrt(sum of the smallest `rank` eigenvalues / trace) on the same tokens: the smallest BX_ratio of any B of this
    rank."""
    tokens_per_dimension: float
    """All tokens over in_features; far below 8 the optimum is due to chance."""
    DeltaX_ratio: float
    """mean ||dW x|| / mean ||x||; dW is the change of the layer's weight since the base."""
    base_BX_ratio: float
    """BX_ratio on the layer's inputs in the frozen base model."""
    base_DeltaX_ratio: float
    """DeltaX_ratio on the layer's inputs in the frozen base model."""
    bound_left: float | None
    """||dW X||_F / ||X||_F; null for a method that trains B, for which there is no bound."""
    bound: float | None
    """||A - A_0||_2 ||B X||_F / ||X||_F, at least bound_left."""
    base_bound_left: float | None
    """bound_left on the frozen base model's inputs."""
    base_bound: float | None
    """bound on the frozen base model's inputs."""

    @property
    def times_better_than_random(self) -> float:
        """BX_ratio_random / BX_ratio; infinite for a perfect null space."""
        return self.BX_ratio_random / self.BX_ratio if self.BX_ratio else float("inf")


@dataclass(frozen=True)
class Sample:
    """Which tokens were measured."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    seed: int
    """Seed of windows and tokens."""
    calib_loader_size: int
    """Number of requested windows."""
    seq_len: int
    """Tokens per window."""
    max_activation_samples: int
    """Tokens over which norms are averaged."""
    note: str
    """How the text was too short; else empty."""


@dataclass(frozen=True)
class Summary:
    """Averages over the layers; ratios are means over layers."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    method: str
    """Method of the adapter."""
    trained: bool
    """Whether the adapter was trained."""
    down_frozen: bool
    """Whether its method keeps B at its initial value."""
    starts_at_zero: bool
    """Whether its method starts from A = 0, so that W_res = W."""
    sample: Sample
    """The measured tokens."""
    num_tokens: int
    """Number of tokens from which each layer's sample is drawn."""
    BX_ratio: float
    """Mean of BX_ratio."""
    BX_ratio_bos: float
    """Mean of BX_ratio_bos."""
    BX_ratio_rest: float
    """Mean of BX_ratio_rest."""
    ABX_ratio: float
    """Mean of ABX_ratio."""
    adapter_contribution: float
    """Mean of adapter_contribution."""
    BX_ratio_random: float
    """Mean of the random baseline."""
    BX_ratio_optimum: float
    """Mean of the optimum."""
    base_BX_ratio: float
    """Mean of base_BX_ratio."""
    DeltaX_ratio: float
    """Mean of DeltaX_ratio."""
    A_weight_norm: float
    """sqrt(sum ||A||_F^2)."""
    B_weight_norm: float
    """sqrt(sum ||B||_F^2)."""

    @property
    def times_better_than_random(self) -> float:
        """BX_ratio_random / BX_ratio; infinite for a perfect null space."""
        return self.BX_ratio_random / self.BX_ratio if self.BX_ratio else float("inf")


@dataclass(frozen=True)
class Verdict:
    """The interpretation of one number of the summary."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    metric: str
    """Name of the number."""
    value: float
    """The number."""
    grade: Grade
    """good, fair or bad."""
    text: str
    """The verdict in words, with likely causes."""


@dataclass(frozen=True)
class Verification:
    """The content of the statistics file."""

    model_path: str
    """The adapter, as the user gave it."""
    calib_dataset: str
    """The text, as the user gave it."""
    num_layers: int
    """Layers with an adapter."""
    stats: tuple[LayerStats, ...]
    """One entry per layer, in the model's order."""
    summary: Summary
    """Averages over the layers."""
    verdicts: tuple[Verdict, ...]
    """One verdict per metric."""

    def to_frame(self) -> pd.DataFrame:
        """One row per layer; the columns are the fields of `LayerStats`."""
        return pd.DataFrame([asdict(stats) for stats in self.stats])

    def save(self, folder: Path | str) -> None:
        """Writes verification.json, as `nullspace verify --save-stats` does; ValueError if another file is there."""
        path = Path(folder) / "verification.json"
        if os.path.lexists(path):
            read_stats(path)
        write_stats(path, self)

    @classmethod
    def load(cls, folder: Path | str) -> "Verification":
        """Reads what `save` wrote."""
        return read_stats(Path(folder) / "verification.json")


def write_stats(path: Path, verification: Verification) -> None:
    """Writes the file: sorted JSON with exactly `KEYS`."""
    write_json(path, asdict(verification))


def read_stats(path: Path) -> Verification:
    """Reads what `write_stats` wrote; ValueError names the file, the key and what is wrong."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; write it by `subspacelab nullspace verify --save-stats {path}`")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with the keys {list(KEYS)}, got {type(content).__name__}")
    try:
        found = validate(Verification, content, where=str(path))
    except ValueError as e:
        raise ValueError(f"{e}; write it again by `subspacelab nullspace verify --save-stats`") from e
    if found.num_layers != len(found.stats) or not found.stats:
        raise ValueError(f"{path}: num_layers is {found.num_layers}, stats has {len(found.stats)}; write it again")
    return found


def require_own_stats(path: Path, model_path: Path, calib_dataset: str, sample: Sample) -> None:
    """ValueError unless `path` is free or holds statistics of this adapter on these tokens, to be replaced."""
    if not os.path.lexists(path):
        return
    try:
        found = read_stats(path)
    except ValueError as e:
        raise ValueError(f"{path}: no statistics of this version, and would be replaced; give another file") from e
    earlier = _job(found.model_path, found.calib_dataset, found.summary.sample)
    wanted = _job(str(model_path), calib_dataset, sample)
    if earlier["model_path"] != wanted["model_path"] and not Path(found.model_path).exists():
        raise ValueError(
            f"{path}: of the adapter {found.model_path!r}, which does not exist from this folder; run it in "
            "the folder where that was measured, or give another file"
        )
    require_same_job(path, earlier, wanted)


def _job(model_path: str, calib_dataset: str, sample: Sample) -> dict[str, Any]:
    text = expanded(calib_dataset)
    given = {"model_path": _place(Path(model_path)), "calib_dataset": _place(text) if text.exists() else calib_dataset}
    return asdict(sample) | given | {"note": ""}


def _place(path: Path) -> str:
    return str(real_path(path))


HARDLY_BETTER = 1.5
"""A B less than this factor better than a random one has found no null space, whatever the threshold says."""


@dataclass(frozen=True)
class Threshold:
    """Where good ends and bad begins; both values themselves count as fair."""

    good: float
    """Values beyond this one are good."""
    bad: float
    """Values beyond this one are bad."""

    def grade(self, value: float) -> Grade:
        """good, fair or bad; small values are good if `good` is smaller than `bad`."""
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
    """One verdict per metric in `THRESHOLDS`."""
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
