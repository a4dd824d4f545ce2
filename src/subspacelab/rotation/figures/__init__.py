"""The pictures of a comparison."""

from pathlib import Path

import pandas as pd

from subspacelab.rotation.chain import Chain
from subspacelab.rotation.figures.angles import draw_principal_angles
from subspacelab.rotation.figures.curves import draw_rotation_curves
from subspacelab.rotation.figures.spectra import draw_spectra
from subspacelab.rotation.figures.updates import draw_update_geometry
from subspacelab.rotation.groups import Group


def draw_pictures(
    output_dir: Path, layers: pd.DataFrame, curves: pd.DataFrame, groups: list[Group], chain: Chain
) -> tuple[Path, ...]:
    """Draws everything a comparison shows to `output_dir`; returns the files."""
    return (
        draw_rotation_curves(output_dir / "rotation_mse_curves.png", curves, groups),
        draw_principal_angles(output_dir / "principal_angles.png", curves, groups),
        draw_spectra(output_dir / "spectra.png", layers, groups, chain),
        draw_update_geometry(output_dir / "update_geometry.png", layers, groups),
    )
