"""What faults are tried on."""

from pathlib import Path

import pytest
from tests.faults.workshop import COMMANDS, STUDIES, run, write_inputs


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every command of the studies has run well."""
    place = tmp_path_factory.mktemp("workshop")
    write_inputs(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in STUDIES:
            assert run(COMMANDS[name]) == 0, name
    return place
