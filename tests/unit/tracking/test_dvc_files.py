"""The md5 of files and folders, as DVC computes them (integration/test_dvc_tracking.py compares with DVC itself)."""

import hashlib
import json
from pathlib import Path

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
