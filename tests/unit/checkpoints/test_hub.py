import json
import os
import subprocess
import sys
import time

import pytest
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.fake_hub import COMMIT
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import resolve_reference


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What came of resolving against a hub on loopback, and after it went away."""
    tmp_path = tmp_path_factory.mktemp("hub")
    root = write_tiny_qwen_vl(tmp_path / "repo", sharded=True)
    write_tiny_qwen_vl(root, format="bin")
    for name in ("tokenizer.json", "merges.txt", "modeling.py", "consolidated.safetensors"):
        (root / name).write_text("{}")
    settings = {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-m", "tests.unit.checkpoints.fake_hub", str(root)]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_only_one_weight_format_and_the_small_files_are_fetched(outcome):
    assert outcome["revision"] == COMMIT
    assert outcome["files"] == outcome["served"]
    assert outcome["files"] == [
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        ("lab/gated", "accept its licence there and run `hf auth login`"),
        ("lab/private", "check the name, or run `hf auth login`"),
        ("lab/tiny@no-such-branch", "has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(outcome, reference, remedy):
    message = outcome["refused"][reference]
    assert message.startswith(f"{reference}: no such local folder")
    assert remedy in message
    assert "\n" not in message


@pytest.mark.slow
def test_without_the_hub_the_cache_is_used_or_the_reference_named(outcome):
    assert outcome["cached"] == [outcome["folder"]] * 2
    assert outcome["unreachable"].startswith("lab/other: no such local folder, and it could not be fetched")
    assert "give a local folder instead" in outcome["unreachable"]
    assert "\n" not in outcome["unreachable"]


def test_offline_mode_fails_at_once_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    message = refusal(resolve_reference, "lab/tiny")
    assert time.monotonic() - start < 5
    assert message.startswith("lab/tiny: no such local folder, and HF_HUB_OFFLINE is set")
    assert "hf download" in message
