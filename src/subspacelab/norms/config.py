"""What can be set for the stage of norms."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnalyzeNormsConfig:
    """Stage `analyze_norms`: embedding norms and norm-layer parameters of one checkpoint."""

    device: str
    """auto, cpu, cuda or mps."""
    all_norms: bool
    """Report every norm layer; false: those that read the embedding stream, and the final ones."""
