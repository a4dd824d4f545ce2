"""What can be set in the report."""

from subspacelab.core.settings import Count, settings


@settings
class ReportConfig:
    """`report`: one HTML page of all results."""

    pictures: Count = 3
    """Test pictures whose channel maps the page holds, from the first."""
    channels: Count = 24
    """Channels of each picture, from the first; 3 pictures of 24 channels take 1.8 MB."""


STAGES = {"report": ReportConfig}
"""Stage to what can be set for it in params.yaml and in a study."""
