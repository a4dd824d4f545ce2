"""Settings of rotation."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from subspacelab.core.settings import Count, Flag, Natural, Positive, Seed, settings

Method = Literal["auto", "gram", "lapack"]
Format = Literal["float32", "float16", "bfloat16"]
NullModel = Literal["spectrum", "permuted"]


@settings
class DecomposeConfig:
    """`decompose`: the SVD of every weight matrix of a checkpoint."""

    rank: Count | None = None
    """Number of leading singular triples to keep; default: all."""
    include: str | None = None
    """Only weights whose name matches this regular expression."""
    exclude: str | None = None
    """Skip weights whose name matches this regular expression."""
    method: Method = "auto"
    """Method: auto, gram (float64 Gram matrix, fast) or lapack."""
    format: Format = "float32"
    """Storage dtype of U and Vh; in half precision the weight cannot be recovered from them."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class CompareRotationsConfig:
    """`compare`: rotations and updates from checkpoint to checkpoint, compared with random updates."""

    k: Annotated[Count | None, Flag("--k"), Flag("--rank")] = None
    """Number of leading directions for the principal angles; default: the smaller of the rank and 64."""
    modules: dict[str, str] = field(default_factory=dict)
    """Further groups, label -> comma-separated weights, `{}` for any layer. The default groups are always there."""
    null_draws: Annotated[Natural | Literal["auto"], Flag("--null")] = 3
    """Random updates of equal norm per weight, pair and null model; each takes a decomposition. 0: none; auto: 3, or 1
    if they would take more than 50,000 GFLOP. From 3 draws, |z| > 3 occurs by chance in 12 % of the columns and |z| > 5
    in 4.9 %; from 10 draws in 1.9 % and 0.1 %; from 20 in 0.9 % and 0.01 %. Angles and composition errors are skewed:
    for them |z| > 5 occurs in 1 to 2 % even from 10 draws."""
    null_models: Annotated[list[NullModel] | None, Flag("--null-model")] = None
    """Null models in addition to Gaussian updates, each at the same cost: spectrum (the update's singular values in
    random frames), permuted (its entries shuffled, so that it is equally sparse). Repeatable."""
    include: str | None = None
    """Only weights whose name matches this regular expression."""
    exclude: str | None = None
    """Skip weights whose name matches this regular expression."""
    device: str = "auto"
    """auto, cpu or cuda."""


@settings
class AuditConfig:
    """`audit`: the update of a LoRA adapter, compared with random updates with the same singular values."""

    k: Annotated[Count | None, Flag("--k"), Flag("--rank")] = None
    """Number of leading (and trailing) directions of the base; default: the smaller of its rank and 64."""
    null_draws: Annotated[Natural, Flag("--null")] = 3
    """Random updates per weight for angles and intruders, one decomposition each; 0: none. Energies need none."""
    calib_dataset: str | None = None
    """Text on which the update's outputs are compared with the weight's: wikitext2, c4, ptb, pipeline:corpus or a file.
    The base must then be a causal language model, and is loaded."""
    calib_loader_size: Count = 16
    """Number of windows of text."""
    seq_len: Count = 512
    """Tokens per window."""
    device: str = "auto"
    """auto, cpu or cuda."""


@settings
class ExtractConfig:
    """`extract`: the update of the linear layers as a LoRA adapter."""

    rank: Count | None = None
    """Rank of every weight's update; give either rank or energy."""
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each weight's squared update norm to keep, with the smallest sufficient rank; give either rank or
    energy."""
    include: str | None = None
    """Only weights whose name matches this regular expression."""
    exclude: str | None = None
    """Skip weights whose name matches this regular expression."""
    device: str = "auto"
    """auto, cpu or cuda."""


@settings
class ApplyConfig:
    """`apply`: the base plus a part of an update."""

    rank: Natural | None = None
    """Number of leading terms of each weight's update; default: all. With 0, only norms and biases change."""
    part: Literal["leading", "trailing", "rotation", "spectrum"] = "leading"
    """leading (best approximation of that rank), trailing (the rest), rotation (tuned directions, the base's singular
    values) or spectrum (the base's directions, tuned singular values)."""
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of the part: above 1 extrapolates, below 1 interpolates."""
    random: Seed | None = None
    """Seed of the control: a Gaussian matrix with each part's norm, in its place."""
    device: str = "auto"
    """auto, cpu or cuda."""


@settings
class JudgeUpdatesConfig:
    """`judge_updates`: evaluation of parts of stage 2's update, and of predictions of it, as models."""

    ranks: list[Count] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128])
    """Ranks of the update's best approximations."""
    scales: list[Positive] = field(default_factory=lambda: [0.5, 1.5, 2.0])
    """Factors of the update; 0 and 1 are always included."""
    evaluated: Count = 512
    """Number of held-out scenes on which each checkpoint is evaluated."""


STAGES = {
    "decompose": DecomposeConfig,
    "compare_rotations": CompareRotationsConfig,
    "judge_updates": JudgeUpdatesConfig,
}
"""Stage -> class of its settings in params.yaml and in a study."""
