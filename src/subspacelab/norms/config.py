"""What can be set in norms."""

from subspacelab.core.settings import Count, Seed, settings


@settings
class AnalyzeNormsConfig:
    """`analyze`: embedding norms and norm-layer parameters of a checkpoint."""

    all_norms: bool = False
    """Every norm layer, not only those that read the embedding stream, and the final ones."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class AnalyzeSettings(AnalyzeNormsConfig):
    """The command `analyze`: of a large model on the hub less can be read."""

    embeddings: bool = True
    """The norms of all embedding vectors; --no-embeddings reads the norm layers alone, of a 72B 5 MB instead
    of 2.5 GB."""
    curves: bool = True
    """Curves over depth, which take every norm layer; --no-curves reads only those that are listed."""


@settings
class MassiveSettings:
    """`massive`: dimensions of the residual stream that carry massive activations."""

    num_windows: Count = 16
    """Windows of text that the model reads."""
    seq_len: Count = 256
    """Tokens in a window."""
    num_dims: Count = 4
    """Dimensions that are followed through the layers, and as many random ones beside them."""
    batch_size: Count = 4
    """Windows per pass of the model."""
    seed: Seed = 233
    """Draws the windows and the random dimensions."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


STAGES = {"analyze_norms": AnalyzeNormsConfig}
"""Stage to what can be set for it in params.yaml and in a study."""
