"""Files and folders appear whole or not at all."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from subspacelab.core.files import (
    expanded,
    move_folder,
    read_json,
    remove_folder,
    remove_partials,
    remove_partials_of,
    replace_folder,
    sha256_file,
    write_beside,
    write_json,
)


def test_json_round_trip_is_sorted_and_repeatable(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    first = (tmp_path / "a.json").read_bytes()
    write_json(tmp_path / "a.json", {"a": [1.5, None], "b": 1})
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": 1}
    assert (tmp_path / "a.json").read_bytes() == first


def test_json_keeps_half_a_surrogate_pair(tmp_path):
    write_json(tmp_path / "a.json", {"name": "a \ud83d é"})
    assert read_json(tmp_path / "a.json") == {"name": "a \ud83d é"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), write_beside(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError("disk full")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_a_folder_is_replaced_whole(tmp_path):
    for version in ("old", "new"):
        with replace_folder(tmp_path / "f") as partial:
            (partial / version).write_text(version)
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "f") as partial:
        (partial / "half").write_text("half")
        raise RuntimeError("killed")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["f", "f/new"]


@pytest.mark.parametrize("far", [False, True])
def test_a_folder_moves_into_the_place_of_another_and_not_into_it(tmp_path, monkeypatch, far):
    write_json(tmp_path / "work" / "new.json", 1)
    write_json(tmp_path / "outs" / "x" / "old.json", 0)
    replace = os.replace

    def between_file_systems(source, final):
        if (source.name, final.name) == ("work", "x"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, final)

    if far:
        monkeypatch.setattr("subspacelab.core.files.os.replace", between_file_systems)
    move_folder(tmp_path / "work", tmp_path / "outs" / "x")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["outs", "outs/x", "outs/x/new.json"]


class Killed(BaseException):
    """What a kill is to a process that cannot clean up after it."""


def test_a_kill_between_the_two_renames_of_a_replacement_leaves_none_and_no_mixture(tmp_path, monkeypatch):
    write_json(tmp_path / "x" / "old.json", 0)
    replace = os.replace

    def killed_at_the_second(source, final):
        if final == tmp_path / "x":
            raise Killed
        replace(source, final)

    with monkeypatch.context() as patch, pytest.raises(Killed), replace_folder(tmp_path / "x") as partial:
        write_json(partial / "new.json", 1)
        patch.setattr("subspacelab.core.files.os.replace", killed_at_the_second)
        patch.setattr("subspacelab.core.files.shutil.rmtree", lambda path, **given: None)
    assert not (tmp_path / "x").exists()
    remove_partials_of(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_removal_cut_short_leaves_has_another_name(tmp_path, monkeypatch):
    for name in ("a.json", "b.json"):
        write_json(tmp_path / "work" / name, 1)

    def cut_short(path, **given):
        if (path / "replaced").exists():
            (path / "replaced" / "a.json").unlink()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("subspacelab.core.files.shutil.rmtree", cut_short)
        remove_folder(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert list(tmp_path.rglob("b.json"))
    remove_partials_of(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


WRITE_FOR_EVER = """
import sys, torch
from pathlib import Path
from subspacelab.checkpoints import write_tensors
while True:
    write_tensors(Path(sys.argv[1]), {"w": torch.zeros(1 << 22)})
"""


@pytest.mark.slow
def test_what_a_kill_leaves_of_a_tensor_file_is_all_found(tmp_path):
    # safetensors writes to a file of a name of its own beside the one it was given
    for moment in (0.02, 0.05, 0.1):
        child = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path / "w.safetensors")])
        while child.poll() is None and not list(tmp_path.rglob("*.partial/*")):
            time.sleep(0.001)
        time.sleep(moment)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        remove_partials(tmp_path)
        assert {path.name for path in tmp_path.rglob("*")} <= {"w.safetensors"}


def test_broken_json_is_one_line_that_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON") as e:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(e.value)


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"subspace")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"subspace").hexdigest()


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        for read in (read_json, sha256_file):
            with pytest.raises(ValueError, match=f"{name}: not a regular file"):
                read(tmp_path / name)


def test_the_home_of_nobody_is_a_name_like_any_other(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(expanded(path)) for path in ("~/a", "~nobody-here/a", "a~")] == ["/home/me/a", "~nobody-here/a", "a~"]
