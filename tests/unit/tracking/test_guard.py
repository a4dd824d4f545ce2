"""A stage whose inputs changed in mid-run does not finish."""

from pathlib import Path

import pytest

from subspacelab.tracking import InputGuard


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
