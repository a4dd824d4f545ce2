"""Settings of the report."""

from subspacelab.core.settings import Count, settings


@settings
class ReportConfig:
    """`report`: one HTML page of all results."""

    pictures: Count = 3
    """Number of test pictures with channel maps, from the first."""
    channels: Count = 24
    """Channels per picture, from the first; 3 pictures with 24 channels take 1.8 MB."""


STAGES = {"report": ReportConfig}
"""Stage -> class of its settings in params.yaml and in a study."""
