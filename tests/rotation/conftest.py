import warnings
from pathlib import Path

import pytest
from tests.rotation.chains import chain_tensors, decompose_chain

from subspacelab.rotation.compare import Comparison, compare

MODULES = {
    "block 0": "visual.blocks.0.attn.qkv,model.layers.0.mlp.up_proj",
    # Labels that would be a formula, markup, or hidden from legends.
    r"$\frac{$": "visual.blocks.{}.attn.qkv",
    "[x]": "model.layers.{}.mlp.up_proj",
    "_y": "model.layers.0.mlp.up_proj",
}
Curves = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A decomposed chain in float32, to be read only."""
    return decompose_chain(tmp_path_factory.mktemp("chain"), chain_tensors())


@pytest.fixture(scope="session")
def curves() -> Curves:
    """What `comparison` has logged: step and metrics."""
    return []


@pytest.fixture(scope="session")
def comparison(
    folders: tuple[Path, Path, Path], curves: Curves, tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    """The whole comparison of `folders`, with k = 8 and further groups; nothing in it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare(
            *folders,
            tmp_path_factory.mktemp("out"),
            k=8,
            modules=MODULES,
            null_draws=2,
            log_curve=lambda metrics, step: curves.append((step, dict(metrics))),
            device="cpu",
        )
