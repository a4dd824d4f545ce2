import warnings
from pathlib import Path

import pytest
from tests.unit.rotation.chains import chain_tensors, decompose_chain

from subspacelab.rotation.comparison import Comparison, compare
from subspacelab.rotation.plots import draw_pictures

MODULES = {
    "block 0": "visual.blocks.0.attn.qkv,model.layers.0.mlp.up_proj",
    # Labels that would be a formula, markup, or hidden from legends.
    r"$\frac{$": "visual.blocks.{}.attn.qkv",
    "[x]": "model.layers.{}.mlp.up_proj",
    "_y": "model.layers.0.mlp.up_proj",
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A decomposed chain in float32, to be read only."""
    return decompose_chain(tmp_path_factory.mktemp("chain"), chain_tensors())


@pytest.fixture(scope="session")
def comparison(folders: tuple[Path, Path, Path]) -> Comparison:
    """The whole comparison of `folders`, with k = 8 and further groups; nothing in it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare(*folders, k=8, modules=MODULES, null_draws=2, device="cpu")


@pytest.fixture(scope="session")
def saved(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `comparison` is saved and drawn; nothing in that warns."""
    folder = tmp_path_factory.mktemp("out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison.save(folder, details=False)
        draw_pictures(folder, comparison)
    return folder
