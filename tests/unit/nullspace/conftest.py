"""What the tests of adapters start from."""

from pathlib import Path

import pytest
from tests.language_models import FAMILIES, write_text, write_tiny_lm


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of each family and text.txt; to be read only."""
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        write_tiny_lm(folder / family, family)
    write_text(folder / "text.txt")
    return folder
