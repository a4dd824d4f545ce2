"""What can be set in rotation."""

from dataclasses import field
from typing import Annotated, Literal

from subspacelab.core.settings import Count, Flag, Natural, settings

Method = Literal["auto", "gram", "lapack"]
Format = Literal["float32", "float16", "bfloat16"]
NullModel = Literal["spectrum", "permuted"]


@settings
class DecomposeConfig:
    """`decompose`: the SVD of every weight matrix of a checkpoint."""

    rank: Count | None = None
    """Leading singular triples to keep; all by default."""
    include: str | None = None
    """Only weights whose name this regular expression finds."""
    exclude: str | None = None
    """Not the weights whose name this regular expression finds."""
    method: Method = "auto"
    """How: auto, gram (float64 Gram matrix, fast) or lapack."""
    format: Format = "float32"
    """What U and Vh are stored as; in half precision they do not give the weight back."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class CompareRotationsConfig:
    """`compare`: rotations and updates from checkpoint to checkpoint, beside those of random updates."""

    k: Annotated[Count | None, Flag("--k"), Flag("--rank")] = None
    """Leading directions of the principal angles; the smaller of the rank and 64 by default."""
    modules: dict[str, str] = field(default_factory=dict)
    """Further groups: label to comma-separated weights, `{}` for any layer; the default groups come by themselves."""
    null_draws: Annotated[Natural | Literal["auto"], Flag("--null")] = 3
    """Random updates of equal norm drawn per weight, pair and null model, a decomposition each; 0: none; auto: 3, or 1
    where they take more than 50,000 GFLOP. From 3, |z| > 3 comes by chance in 12 % of the columns and |z| > 5 in 4.9 %;
    from 10 in 1.9 % and 0.1 %; from 20 in 0.9 % and 0.01 %; of angles and composition errors, which are skewed, |z| > 5
    in 1 to 2 % even from 10."""
    null_models: Annotated[list[NullModel] | None, Flag("--null-model")] = None
    """What is drawn beside Gaussian updates, at the same cost each: spectrum (the update's singular values in random
    frames), permuted (its entries shuffled, so that it is as sparse). Repeatable."""
    include: str | None = None
    """Only weights whose name this regular expression finds."""
    exclude: str | None = None
    """Not the weights whose name this regular expression finds."""
    device: str = "auto"
    """auto, cpu or cuda."""


@settings
class AuditConfig:
    """`audit`: the update of a LoRA adapter beside random updates of the same singular values."""

    k: Annotated[Count | None, Flag("--k"), Flag("--rank")] = None
    """Leading, and trailing, directions of the base; the smaller of its rank and 64 by default."""
    null_draws: Annotated[Natural, Flag("--null")] = 3
    """Random updates drawn per weight for angles and intruders, one decomposition each; 0: none. Energies need none."""
    device: str = "auto"
    """auto, cpu or cuda."""


STAGES = {"decompose": DecomposeConfig, "compare_rotations": CompareRotationsConfig}
"""Stage to what can be set for it in params.yaml and in a study."""
