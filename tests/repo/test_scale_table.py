"""The table of docs/scale.md is what benchmarks/scale_table.py prints, and its shapes are those of the models."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_table", ROOT / "benchmarks" / "scale_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_table"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_table(scale: ModuleType) -> None:
    assert scale.table() in (ROOT / "docs" / "scale.md").read_text()


def test_the_shapes_are_those_of_the_models(scale: ModuleType) -> None:
    """Parameters as on the hub, norms and biases left out: 3.75, 6.74 and 72.7 billion."""
    found = [model.parameters() / 1e9 for model in scale.MODELS]
    assert found == pytest.approx([3.75, 6.74, 72.7], rel=0.003)
