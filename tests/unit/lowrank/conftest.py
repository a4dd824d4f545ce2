"""What the tests of feature caches start from."""

import pytest
from tests.tiny import write_tiny_qwen_vl

from subspacelab.checkpoints import Source, resolve_reference
from subspacelab.lowrank import extraction


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny Qwen2.5-VL checkpoint."""
    return resolve_reference(str(write_tiny_qwen_vl(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture
def two_pictures_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of a few pictures."""
    monkeypatch.setattr(extraction, "SHARD_PICTURES", 2)
