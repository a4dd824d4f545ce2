"""Pictures by path, or by the name of a data set on the hub."""

import pytest
from huggingface_hub.utils import filter_repo_objects

from subspacelab.data.pictures import read_pictures
from subspacelab.data.references import file_patterns, resolve_pictures


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
