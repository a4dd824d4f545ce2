"""A checkpoint stage in a study of the hub's: nothing is trained, the commit that is meant is recorded."""

from pathlib import Path

from subspacelab.checkpoints import resolve_reference, write_reference
from subspacelab.core.files import write_json

REPORTS = Path("reports/checkpoints")


def take_from_hub(reference: str, folder: Path) -> bool:
    """Writes a pointer to the reference's commit instead of a checkpoint; False for `train`: it is trained here.

    Raises ValueError when the hub does not know the reference or cannot be reached.
    """
    if reference == "train" or reference == f"demo:{folder.name}":  # the latter in studies of earlier versions
        return False
    source = resolve_reference(reference)
    write_reference(folder, source)
    write_json(REPORTS / f"{folder.name}.json", {"reference": source.reference, "revision": source.revision})
    return True
