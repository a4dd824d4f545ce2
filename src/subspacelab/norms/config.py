"""What can be set in norms."""

from subspacelab.core.settings import Count, Seed, settings


@settings
class AnalyzeNormsConfig:
    """`analyze`: embedding norms and norm-layer parameters of a checkpoint."""

    all_norms: bool = False
    """Report every norm layer, not only the final ones and those that read the embedding stream."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@settings
class AnalyzeSettings(AnalyzeNormsConfig):
    """The command `analyze`, with options to read less of a large model on the hub."""

    embeddings: bool = True
    """The norms of all embedding vectors; --no-embeddings reads only the norm layers: 5 MB instead of 2.5 GB for a 72B
    model."""
    curves: bool = True
    """Curves over depth, which need every norm layer; --no-curves reads only the reported ones."""


@settings
class MassiveSettings:
    """`massive`: dimensions of the residual stream with massive activations."""

    num_windows: Count = 16
    """Windows of text that the model reads."""
    seq_len: Count = 256
    """Tokens in a window."""
    num_dims: Count = 4
    """Number of dimensions followed through the layers, and number of random ones beside them."""
    batch_size: Count = 4
    """Windows per pass of the model."""
    seed: Seed = 233
    """Seed of the windows and of the random dimensions."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


STAGES = {"analyze_norms": AnalyzeNormsConfig}
"""Stage -> class of its settings in params.yaml and in a study."""
