"""Pictures by path, or by the name of a data set on the hub."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from tests.unit.data.fake_data_hub import CONTENT, FILE

from subspacelab.data.pictures import read_pictures
from subspacelab.data.references import fetch_data_file, file_patterns, resolve_pictures


def test_what_is_there_is_taken_as_it_is(tmp_path):
    assert resolve_pictures(str(tmp_path)) == tmp_path


def test_of_a_data_set_comes_what_a_scan_of_its_folder_finds(tmp_path):
    names = ["0.PNG", "a/1.tiff", "2.bmp", "3.Gif", "4.jp2", "README.md", "weights.bin", "5.eps"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    fetched = filter_repo_objects(names, allow_patterns=file_patterns())
    assert sorted(fetched) == sorted(picture.dataset_id for picture in read_pictures(tmp_path))
    tables = ["data/x.parquet", "y.jsonl"]
    assert list(filter_repo_objects(tables, allow_patterns=file_patterns())) == tables


@pytest.mark.parametrize("reference", ["nowhere/at/all", "missing.parquet", "org/rows.jsonl", "no such folder"])
def test_what_is_neither_a_path_nor_a_data_set_is_refused_in_one_line(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such pictures") as caught:
        resolve_pictures(reference)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_a_hub_is_one_line_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="nobody/nothing: no such local path") as caught:
        resolve_pictures("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of fetching from a hub on loopback, and after it went away."""
    home = tmp_path_factory.mktemp("hub")
    settings = {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-m", "tests.unit.data.fake_data_hub"]
    done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_file_is_fetched_once_and_found_again_without_the_hub(outcome: dict[str, str]) -> None:
    assert outcome["fetched"] == outcome["again"] == outcome["cached"] == CONTENT.decode()
    assert outcome["served"] == 1


@pytest.mark.slow
def test_a_folder_holds_what_matches_and_is_found_again_without_the_hub(outcome: dict[str, str]) -> None:
    assert outcome["folder"] == outcome["cached_folder"] == [FILE]
    assert outcome["unreachable_folder"].startswith("lab/other: no such local path, and it could not be fetched")
    assert "\n" not in outcome["unreachable_folder"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "repo", "remedy"),
    [
        ("gated", "lab/gated", "accept its licence there"),
        ("private", "lab/private", "check the name, or run `hf auth login`"),
        ("no_file", "lab/texts", "it could not be fetched from the hub"),
        ("unreachable", "lab/other", "give a local folder instead"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(
    outcome: dict[str, str], case: str, repo: str, remedy: str
) -> None:
    assert outcome[case].startswith(f"{repo}: no local copy of part/")
    assert remedy in outcome[case]
    assert "\n" not in outcome[case]


def test_offline_mode_fails_at_once_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"lab/texts: no local copy of {FILE}, and HF_HUB_OFFLINE is set"):
        fetch_data_file("lab/texts", FILE)
    assert time.monotonic() - start < 5
