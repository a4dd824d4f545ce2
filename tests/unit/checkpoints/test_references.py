from dataclasses import replace
from pathlib import Path

import pytest
from tests.tiny import tiny_qwen_vl_shapes, write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import Source, open_checkpoint, references, resolve_reference, write_reference
from subspacelab.core.files import read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has every repository, in one folder; records what it is asked."""
    asked = []

    def fetch(repo, revision):
        asked.append((repo, revision))
        return tmp_path / "snapshot", COMMIT

    monkeypatch.setattr(references, "fetch_from_hub", fetch)
    return asked


def test_folders_and_files(tmp_path, monkeypatch):
    folder = write_tiny_qwen_vl(tmp_path / "mine")
    assert resolve_reference(str(folder)) == Source(str(folder), folder, None, "mine")
    assert resolve_reference(str(folder / "model.safetensors")).name == "model"
    monkeypatch.chdir(folder)
    assert resolve_reference(".").name == "mine"
    with open_checkpoint(resolve_reference(str(folder))) as checkpoint:
        assert checkpoint.names == sorted(tiny_qwen_vl_shapes())


@pytest.mark.parametrize("scheme", ["pipeline", "demo"])
def test_checkpoints_of_the_pipeline_lie_under_their_root_and_have_one_name(tmp_path, scheme):
    write_tiny_qwen_vl(tmp_path / "base")
    expected = Source("pipeline:base", tmp_path / "base", None, "base")
    assert resolve_reference(f"{scheme}:base", demo_root=tmp_path) == expected
    message = refusal(lambda: resolve_reference(f"{scheme}:rl_stage1", demo_root=tmp_path))
    assert message.startswith(f"{scheme}:rl_stage1: not built yet")
    assert message.endswith("run `dvc repro checkpoint_rl_stage1`")
    assert "pipeline:NAME" in refusal(lambda: resolve_reference(f"{scheme}:../base", demo_root=tmp_path))


def test_hub_references_with_and_without_revision(hub, tmp_path):
    found = resolve_reference("Qwen/Qwen2.5-VL-3B-Instruct")
    snapshot = tmp_path / "snapshot"
    assert found == Source("Qwen/Qwen2.5-VL-3B-Instruct", snapshot, COMMIT, "Qwen2.5-VL-3B-Instruct")
    assert resolve_reference("a/b@refs/pr/3").reference == "a/b"
    assert hub == [("Qwen/Qwen2.5-VL-3B-Instruct", None), ("a/b", "refs/pr/3")]


@pytest.mark.parametrize(
    "reference", ["nothing", "/no/such/folder", "./a/b", "a/b/c", "models/w.safetensors", "a/b@", "", "-a/b"]
)
def test_what_is_no_reference_never_reaches_the_hub(hub, reference):
    assert "give a local folder or file" in refusal(resolve_reference, reference)
    assert hub == []


def test_a_pointer_stands_for_its_commit_under_its_own_name(hub, tmp_path):
    folder = tmp_path / "base"
    write_reference(folder, resolve_reference("Qwen/Qwen2.5-VL-3B-Instruct@main"))
    assert read_json(folder / "reference.json") == {
        "reference": "Qwen/Qwen2.5-VL-3B-Instruct",
        "revision": COMMIT,
    }
    expected = Source("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path / "snapshot", COMMIT, "base")
    assert resolve_reference(str(folder)) == expected
    assert resolve_reference("pipeline:base", demo_root=tmp_path) == expected
    assert hub[1:] == [("Qwen/Qwen2.5-VL-3B-Instruct", COMMIT)] * 2


def test_a_pointer_to_a_local_folder_and_pointers_that_go_wrong(tmp_path):
    folder = write_tiny_qwen_vl(tmp_path / "mine")
    write_reference(tmp_path / "base", resolve_reference(str(folder)))
    assert resolve_reference(str(tmp_path / "base")) == Source(str(folder), folder, None, "base")
    write_reference(tmp_path / "again", Source(str(tmp_path / "base"), Path(), None, "base"))
    assert "itself a pointer" in refusal(resolve_reference, str(tmp_path / "again"))
    (tmp_path / "base" / "reference.json").write_text('{"repo": "a/b"}')
    assert "'reference' and 'revision'" in refusal(resolve_reference, str(tmp_path / "base"))


def test_a_pointer_replaces_itself_alone_and_weights_win_over_a_stray_one(tmp_path):
    source, base = resolve_reference(str(write_tiny_qwen_vl(tmp_path / "mine"))), tmp_path / "base"
    for _ in range(2):
        write_reference(base, source)
    other = replace(source, reference="org/other", revision=COMMIT)
    assert f"reference={source.reference!r}, this one is of reference='org/other'" in refusal(
        write_reference, base, other
    )
    write_tiny_qwen_vl(base)
    assert "base: holds 'config.json', no part of a pointer" in refusal(write_reference, base, source)
    assert resolve_reference(str(base)).folder == base


def test_a_pointer_to_nothing_is_refused(tmp_path):
    (tmp_path / "reference.json").write_text('{"reference": "", "revision": null}')
    assert "must be text" in refusal(resolve_reference, str(tmp_path))


def test_a_name_is_never_a_step_through_the_folders(tmp_path, monkeypatch):
    folder = write_tiny_qwen_vl(tmp_path / "mine")
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    for typed in ("..", "../", "../inner/..", str(folder / "inner" / "..")):
        assert resolve_reference(typed).name == "mine", typed
    (tmp_path / "latest").symlink_to(folder)
    assert resolve_reference(str(tmp_path / "latest")).name == "latest"  # as typed: that is a name
    (tmp_path / "...safetensors").write_bytes(b"")
    for nameless in ("/", str(tmp_path / "...safetensors")):
        assert "no name of its own" in refusal(resolve_reference, nameless)
