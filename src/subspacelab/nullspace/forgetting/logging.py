"""What a study of forgetting gives to the tracker."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from subspacelab.nullspace.forgetting.results import HEADLINE, MEASURES, Forgetting

if TYPE_CHECKING:
    from subspacelab.tracking.protocol import Tracker


def track_forgetting(found: Forgetting, pictures: Sequence[Path], tracker: "Tracker") -> None:
    """Records all tables, each method's means as metrics, its area as a headline, and the pictures."""
    table = found.table()
    for row in table.to_dict("records"):
        means = {name: row[f"{name}_mean"] for name in (*MEASURES, f"{HEADLINE}_area", f"{HEADLINE}_at_level")}
        tracker.log_metrics({f"{k}/{row['method']}": v for k, v in means.items() if not math.isnan(v)})
        tracker.log_headline({f"{row['method']}_area": row[f"{HEADLINE}_area_mean"]})
    for name, rows in (("knowledge", table), ("curves", found.curves_table()), ("costs", found.costs_table())):
        tracker.log_table(rows, name)
    for picture in pictures:
        tracker.log_artifact(picture, "pictures")
