"""Pictures by path, or by the name of a data set on the hub."""

import pytest

from subspacelab.data.references import resolve_pictures


def test_what_is_there_is_taken_as_it_is(tmp_path):
    assert resolve_pictures(str(tmp_path)) == tmp_path


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
