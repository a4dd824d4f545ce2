"""What can be set in norms."""

from subspacelab.core.settings import settings


@settings
class AnalyzeNormsConfig:
    """`analyze`: embedding norms and norm-layer parameters of a checkpoint."""

    all_norms: bool = False
    """Every norm layer, not only those that read the embedding stream, and the final ones."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


STAGES = {"analyze_norms": AnalyzeNormsConfig}
"""Stage to what can be set for it in params.yaml and in a study."""
