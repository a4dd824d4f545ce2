"""A command writes over nothing but what it can prove to be its own."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from subspacelab.core.files import PARTIAL, remove_partials, replace_folder, write_beside
from subspacelab.core.ownership import (
    MANIFEST,
    report_folder,
    require_apart,
    require_own_entries,
    require_same_job,
    sole_writer,
)

JOB = {"base": "a", "k": 4}


def write_report(folder, job=JOB, command="rotation compare", **files):
    with report_folder(folder, command, job, files) as scratch:
        for name, text in files.items():
            (scratch / name).write_text(text)


def contents(folder):
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != MANIFEST}


def test_the_same_job_replaces_its_own_files_and_leaves_all_others(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_report(tmp_path, table="old")
    write_report(tmp_path, table="new")
    write_report(tmp_path, command="lowrank compare", picture="other")
    assert contents(tmp_path) == {"notes.txt": "mine", "table": "new", "picture": "other"}


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.mkdir(), lambda p: p.symlink_to("gone")])
def test_what_others_made_is_refused_before_the_work(tmp_path, make):
    make(tmp_path / "table")
    refused = pytest.raises(ValueError, match="table: not written by this command")
    with refused, report_folder(tmp_path, "rotation compare", JOB, ["table"]):
        pytest.fail("the work began")
    assert os.listdir(tmp_path) == ["table"]


def test_a_name_that_shows_at_the_end_is_refused_as_well(tmp_path):
    (tmp_path / "late").write_text("mine")
    with pytest.raises(ValueError, match="late"), report_folder(tmp_path, "rotation compare", JOB) as scratch:
        (scratch / "late").write_text("ours")
    assert contents(tmp_path) == {"late": "mine"}


def test_a_report_that_its_reader_has_edited_is_theirs(tmp_path):
    write_report(tmp_path, table="ours")
    (tmp_path / "table").write_text("ours, with a note")
    with pytest.raises(ValueError, match="changed since"):
        write_report(tmp_path, table="new")
    assert contents(tmp_path) == {"table": "ours, with a note"}


def test_another_job_is_refused_with_both_names(tmp_path):
    write_report(tmp_path, table="a")
    with pytest.raises(ValueError, match="base='a', this one is of base='b'"):
        write_report(tmp_path, job=JOB | {"base": "b"}, table="b")
    assert contents(tmp_path) == {"table": "a"}


def test_a_result_that_was_removed_is_in_nobodys_way(tmp_path):
    write_report(tmp_path, table="a")
    (tmp_path / "table").unlink()
    write_report(tmp_path, job=JOB | {"base": "b"}, table="b")
    assert contents(tmp_path) == {"table": "b"}


def test_a_manifest_of_somebody_else_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"files": 3}))
    with pytest.raises(ValueError, match="not a manifest of subspacelab"):
        write_report(tmp_path, table="a")


def test_a_failure_leaves_the_old_report_whole(tmp_path):
    write_report(tmp_path, table="old", curve="old")
    with pytest.raises(RuntimeError), report_folder(tmp_path, "rotation compare", JOB) as scratch:
        (scratch / "table").write_text("half")
        raise RuntimeError
    assert contents(tmp_path) == {"table": "old", "curve": "old"}


def test_a_kill_while_the_files_move_leaves_every_file_replaceable(tmp_path, monkeypatch):
    write_report(tmp_path, table="old", curve="old")
    moved = []

    def killed_at_the_second(source, place):
        if moved:
            raise KeyboardInterrupt
        moved.append(os.replace(source, place))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("subspacelab.core.ownership.shutil.move", killed_at_the_second)
        write_report(tmp_path, table="new", curve="new")
    assert sorted(contents(tmp_path).values()) == ["new", "old"]
    write_report(tmp_path, table="new", curve="new")
    assert contents(tmp_path) == {"table": "new", "curve": "new"}


def test_output_apart_from_inputs(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    require_apart(tmp_path / "out", [tmp_path / "in"])
    require_apart(tmp_path, [tmp_path / "in"])
    for place in ("in", "in/new/deep", "link", "link/x", "out/../in"):
        with pytest.raises(ValueError, match="the input"):
            require_apart(tmp_path / place, [tmp_path / "in"])


def test_only_own_entries(tmp_path):
    require_own_entries(tmp_path / "none", {"a"}, "an adapter")
    (tmp_path / "a").write_text("")
    require_own_entries(tmp_path, {"a", "b"}, "an adapter")
    (tmp_path / "thesis").write_text("")
    with pytest.raises(ValueError, match="holds 'thesis', no part of an adapter"):
        require_own_entries(tmp_path, {"a"}, "an adapter")
    with pytest.raises(ValueError, match="a file, not an adapter"):
        require_own_entries(tmp_path / "a", {"a"}, "an adapter")


def test_the_older_name_of_what_the_pipeline_makes_is_the_same_source():
    older = {"base": "demo:llm", "stage1": "../svd/base of demo:base", "models": ["demo:base"]}
    newer = {"base": "pipeline:llm", "stage1": "../svd/base of pipeline:base", "models": ["pipeline:base"]}
    require_same_job("x", older, newer)
    with pytest.raises(ValueError, match="base='demo:llm', this one is of base='pipeline:base'"):
        require_same_job("x", older, newer | {"base": "pipeline:base"})
    with pytest.raises(ValueError, match="base='a/demo:llm'"):
        require_same_job("x", {"base": "a/demo:llm"}, {"base": "a/pipeline:llm"})


def test_settings_that_one_side_lacks_differ():
    require_same_job("x", {"rank": 8}, {"rank": 8})
    with pytest.raises(ValueError, match="include=None, this one is of include='q'"):
        require_same_job("x", {"rank": 8}, {"rank": 8, "include": "q"})


def _hold(place, ready, end):
    with sole_writer(place):
        ready.set()
        end.wait(60)


def test_the_second_writer_is_refused_and_the_lock_goes_with_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    for how in ("end", "kill"):
        ready, end = context.Event(), context.Event()
        child = context.Process(target=_hold, args=(tmp_path / "out", ready, end))
        child.start()
        assert ready.wait(60)
        refused = pytest.raises(ValueError, match=rf"out: another command is writing there \(process {child.pid}\)")
        with refused, sole_writer(tmp_path / "out"):
            pytest.fail("two writers at once")
        child.kill() if how == "kill" else end.set()
        child.join()
        with sole_writer(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_that_of_the_place_however_it_is_written(tmp_path):
    (tmp_path / "link").symlink_to("out")
    refused = pytest.raises(ValueError, match="another command")
    with sole_writer(tmp_path / "out"), refused, sole_writer(tmp_path / "link"):
        pytest.fail("two writers at once")


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "file").symlink_to("real_file")
    (tmp_path / "folder").symlink_to("real_folder")
    with write_beside(tmp_path / "file") as partial:
        partial.write_text("new")
    with replace_folder(tmp_path / "folder") as partial:
        (partial / "a").write_text("new")
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "real_file").read_text() == (tmp_path / "real_folder" / "a").read_text() == "new"


def test_a_link_to_itself_is_a_place_that_the_system_refuses(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), write_beside(tmp_path / "loop"):
        pytest.fail("a link was replaced")
    require_apart(tmp_path / "out", [tmp_path / "loop"])
    assert (tmp_path / "loop").is_symlink()


def test_a_folder_of_the_user_that_is_called_partial_is_no_leftover(tmp_path):
    kept = [f".thesis{PARTIAL}", f".a.123{PARTIAL}", f".{'0' * 32}{PARTIAL}"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".a.{'0' * 32}{PARTIAL}").mkdir()
    remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_folder_is_one_however_it_is_typed(tmp_path, monkeypatch):
    (tmp_path / "out" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    with sole_writer(tmp_path / "out"):
        for typed in (".", "below/..", "../out"):
            with pytest.raises(ValueError, match="another command"), sole_writer(Path(typed)):
                pass


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("mine"), os.mkfifo, Path.mkdir]
)
def test_what_only_looks_like_a_lock_is_refused_and_stays(tmp_path, make):
    (tmp_path / "mine").write_text("mine")
    make(tmp_path / ".out.lock")
    with pytest.raises(ValueError, match=r"\.out\.lock: not a lock file of subspacelab"), sole_writer(tmp_path / "out"):
        pytest.fail("the work began")
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "mine"]
