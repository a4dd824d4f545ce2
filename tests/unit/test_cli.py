"""The command line: help, both spellings, exit codes, one line per mistake."""

import subprocess
import sys

import pytest

from subspacelab.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    return e.value.code or 0, capsys.readouterr()


@pytest.mark.parametrize("arguments", [["--help"], ["rotation", "--help"], ["rotation", "decompose", "--help"]])
def test_help_teaches_and_succeeds(capsys, arguments):
    code, streams = run(capsys, *arguments)
    assert code == 0
    assert "Usage" in streams.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rotation", "decompose", "--nosuch", "1"], "--nosuch"),
        (["rotation", "nosuch"], "nosuch"),
        (["rotation", "decompose"], "--model-id"),
        (["rotation", "decompose", "--model-id", "x", "--rank", "many"], "integer"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments, named):
    code, streams = run(capsys, *arguments)
    assert code == 2
    assert streams.err.count("\n") == 1
    assert named in streams.err


@pytest.mark.parametrize("flag", ["--model-id", "--model_id"])
def test_bad_input_is_one_line_and_exit_code_1_in_both_spellings(capsys, tmp_path, flag):
    code, streams = run(capsys, "rotation", "decompose", flag, str(tmp_path / "nowhere"), "--no_track")
    assert code == 1
    assert streams.err.count("\n") == 1
    assert "nowhere" in streams.err


def test_verbose_anywhere_keeps_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        main(["rotation", "decompose", "--model-id", str(tmp_path / "nowhere"), "--no-track", "--verbose"])


@pytest.mark.slow
def test_importing_the_package_and_its_rooms_needs_neither_dvc_nor_mlflow():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['dvc', 'mlflow'])); "
    rooms = (
        "import subspacelab, subspacelab.rotation.decomposition, subspacelab.rotation.comparison, subspacelab.tracking"
    )
    done = subprocess.run([sys.executable, "-c", blocked + rooms], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_asking_for_help_does_not_import_torch():
    code = (
        "import sys\nfrom subspacelab.cli import main\n"
        "try: main(['rotation', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
