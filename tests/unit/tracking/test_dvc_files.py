"""The md5 of files and folders, as DVC computes them (integration/test_dvc_tracking.py compares with DVC itself)."""

import hashlib
import json
from pathlib import Path

import pytest

from subspacelab.tracking import InputGuard
from subspacelab.tracking.dvc_files import md5_file, md5_folder, out_tags


def test_md5_of_a_folder_is_that_of_its_sorted_listing(tmp_path):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "b").write_text("b")
    (tmp_path / "out" / "a").write_text("a")
    listing = [
        {"md5": hashlib.md5(name.encode()).hexdigest(), "relpath": path} for name, path in (("a", "a"), ("b", "sub/b"))
    ]
    assert md5_folder(tmp_path / "out") == hashlib.md5(json.dumps(listing).encode()).hexdigest() + ".dir"
    assert md5_file(tmp_path / "out" / "a") == hashlib.md5(b"a").hexdigest()


def test_outs_that_do_not_exist_have_no_tag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("reports").mkdir()
    Path("reports/m.json").write_text("{}")
    assert out_tags([Path("reports/m.json"), Path("data/none")]) == {
        "dvc.out.reports/m.json": hashlib.md5(b"{}").hexdigest()
    }


def _inputs(root: Path) -> InputGuard:
    (root / "src" / "__pycache__").mkdir(parents=True)
    (root / "params.yaml").write_text("rank: 8")
    (root / "src" / "a.py").write_text("1")
    return InputGuard([root / "params.yaml", root / "src", root / "absent.yaml"])


def test_guard_passes_when_only_compiled_files_change(tmp_path):
    guard = _inputs(tmp_path)
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (tmp_path / "src" / "b.pyc").write_bytes(b"x")
    (tmp_path / "params.yaml").write_text("rank: 8")  # touched, same content
    guard.check()
    assert (tmp_path / "src" / "b.pyc").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("params.yaml", "rank: 99"), ("src/a.py", None), ("src/new.py", "2"), ("absent.yaml", "")]
)
def test_guard_names_what_changed(tmp_path, name, text):
    guard = _inputs(tmp_path)
    (tmp_path / name).write_text(text) if text is not None else (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: changed while the stage ran.*run it again"):
        guard.check()
