"""What can be set for the stages of rotation."""

from dataclasses import dataclass

from subspacelab.core.settings import require_at_least


@dataclass(frozen=True)
class DecomposeConfig:
    """Stage `decompose`: the SVD of every weight matrix of a checkpoint."""

    rank: int | None
    """Leading singular triples to keep; null keeps all."""
    method: str
    """auto, gram (float64 Gram matrix) or lapack."""
    device: str
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "rank")


@dataclass(frozen=True)
class CompareRotationsConfig:
    """Stage `compare_rotations`: rotations and updates along base -> rl_stage1 -> rl_stage2."""

    k: int | None
    """Leading directions whose principal angles are measured; null: the smaller of the rank and 64."""
    modules: dict[str, str]
    """Further groups: label to comma-separated weights, `{}` for any layer; the default groups come by themselves."""
    null_draws: int
    """Random updates of equal norm drawn per weight and pair as the null model; the study's, as it costs by size."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "k")
        require_at_least(0, self, "null_draws")
