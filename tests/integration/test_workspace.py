"""Only what the pipeline made may go, whoever asks."""

import fcntl
import shutil

import pytest
from tests.integration.toy_pipeline import dvc_in, run_in
from tests.stores import SRC

from subspacelab.pipeline.workspace import remove_outs, require_own_outs


@pytest.mark.slow
def test_what_is_not_the_pipelines_own_is_in_the_way_of_a_run_and_outlives_a_clean(pipeline, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(SRC))
    folder, file = pipeline.root / "folder", pipeline.root / "file.txt"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    with pytest.raises(ValueError, match="^folder: not made by the pipeline, or changed since"):
        require_own_outs()
    remove_outs()
    assert (folder / "precious").read_text() == "mine"
    work = pipeline.root / ".cache" / "stages" / "make" / "0123"
    work.mkdir(parents=True)
    (work.parent / "0123.lock").touch()
    gone, note = work.parent.parent / "no_stage" / "0123", work.parent.parent / "notes.txt"
    gone.mkdir(parents=True)  # of a stage that is no more, or somebody's
    note.write_text("mine")
    require_own_outs()  # the stage was interrupted: what lies there is its own

    shutil.rmtree(folder)
    dvc_in(pipeline, "repro", "-q")
    require_own_outs()
    (pipeline.root / "params.yaml").write_text("rank: 9\n")
    run_in(pipeline, "git", "stash", "-q")  # dvc.lock of another commit: the outs are in the cache
    require_own_outs()
    run_in(pipeline, "git", "stash", "pop", "-q")
    (folder / "note").write_text("mine")
    with (work.parent / "0123.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        capsys.readouterr()
        remove_outs()
    assert (folder / "note").exists()
    assert work.exists()
    assert not file.exists()
    said = capsys.readouterr().err
    assert "folder/ stays: changed since the pipeline made it" in said
    assert ".cache/stages/make stays: the stage is at work" in said
    (folder / "note").unlink()
    remove_outs()
    assert not folder.exists()
    assert not work.exists()
    assert gone.exists()
    assert note.exists()
    dvc_in(pipeline, "checkout", "-q")
    assert file.exists()
