"""The outermost frame of a process: words in, exit code out, and nothing lost on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MEMORY = "out of memory; choose a smaller model, batch or size, or a machine with more"
REPORT = "--verbose shows where; please report"
SCRIPT = Path(__file__).resolve().parents[3] / "pipelines" / "train_lowrank.py"


def run(body: str, *words: str, **streams) -> subprocess.CompletedProcess:
    script = f"import sys\nfrom subspacelab.pipeline.process import run_stage_script, run_process\n{body}"
    return subprocess.run([sys.executable, "-c", script, *words], text=True, stderr=subprocess.PIPE, **streams)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why"),
        ("raise ValueError('the thing; the remedy')", 1, "error: the thing; the remedy"),
        (
            "raise ValueError(r'a' + chr(27) + '[2J, \\n at http://u:secret@host/x')",
            1,
            r"error: a\x1b[2J, at http://host/x",
        ),
        (
            "import shutil; raise shutil.Error([(x, x + '/b', '[Errno 28] No space left on device: a') for x in 'ab'])",
            1,
            "error: a/b: No space left on device; free some space and run again",
        ),
        ("raise MemoryError", 1, f"error: {MEMORY}"),
        ("raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA')", 1, f"error: {MEMORY}"),
        pytest.param("import torch; torch.empty(1 << 55)", 1, f"error: {MEMORY}", marks=pytest.mark.slow),
        ("main()", 1, "error: an input is nested too deeply to be read; --verbose shows which"),
        ("1 / 0", 70, f"error: unexpected ZeroDivisionError: division by zero; {REPORT}"),
        ("{}['x']", 70, f"error: unexpected KeyError: 'x'; {REPORT}"),
        ("raise KeyboardInterrupt", 130, "error: interrupted; run the same command again to continue"),
    ],
)
def test_a_process_ends_with_the_code_and_the_words_of_its_work(end, code, said):
    done = run(f"print('out')\ndef main():\n    {end}\nrun_stage_script(main)", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (code, "out\n")
    assert done.stderr == (f"{said}\n" if said else "")


def test_an_end_of_file_within_a_command_is_named():
    """Typer turns it into an Abort without a message, after an empty line for whoever is at a prompt."""
    body = """
import typer
app = typer.Typer()
@app.command()
def command():
    raise EOFError("marshal data too short")
run_stage_script(lambda: app([], standalone_mode=False))
"""
    done = run(body)
    assert (done.returncode, done.stderr) == (70, f"\nerror: unexpected EOFError: marshal data too short; {REPORT}\n")


@pytest.mark.slow
def test_libraries_are_heard_with_verbose_only():
    body = """
import logging, warnings
def main():
    import transformers, torch, PIL
    for name in ("transformers.x", "torch.x", "mlflow", "PIL.x", "py"):
        logging.getLogger(name).warning("noise")
    warnings.warn("more noise")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("still more")
    raise ValueError("the thing")
run_stage_script(main)
"""
    assert run(body).stderr == "error: the thing\n"
    for loud in (run(body, env={**os.environ, "VERBOSE": "1"}).stderr, run(body, "--verbose").stderr):
        assert all(word in loud for word in ("noise", "more noise", "still more", "Traceback"))


def interrupted(line: list[str], ready: str, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a process that gets a SIGINT once `ready` holds in its folder."""
    with subprocess.Popen(
        line, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(cwd.glob(ready)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return process.wait(), process.communicate()[1]


INTERRUPTED = "error: interrupted; run the same command again to continue\n"


def test_ctrl_c_is_one_line_from_a_door(tmp_path):
    script = (
        "import time, pathlib; from subspacelab.pipeline.process import run_stage_script\n"
        "def main():\n    pathlib.Path('ready').touch(); time.sleep(60)\nrun_stage_script(main)"
    )
    assert interrupted([sys.executable, "-c", script], "ready", tmp_path) == (130, INTERRUPTED)


def test_ctrl_c_is_one_line_while_a_stage_script_imports(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import _checkout, pathlib, time\n"
    script += "pathlib.Path('ready').touch(); time.sleep(60)"
    assert interrupted([sys.executable, "-c", script], "ready", tmp_path) == (-signal.SIGINT, INTERRUPTED)


def test_ctrl_c_is_one_line_from_a_command(tmp_path):
    script = (
        "import pathlib, time; from subspacelab import cli, commands\n"
        "@commands.app.command()\ndef wait():\n    pathlib.Path('ready').touch(); time.sleep(60)\ncli.run()"
    )
    assert interrupted([sys.executable, "-c", script, "wait"], "ready", tmp_path) == (130, INTERRUPTED)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_a_terminal_that_cannot_show_a_letter_breaks_nothing(encoding):
    body = r"""
def main():
    print("\u4e2d \xe9 \udc80")
    from subspacelab.plotting.terminal import print_table
    print_table("[/x] \u4e2d", ["[red]a", "b"], [["\x1b[2J[/]", "\U0001f600"]])
    raise ValueError("\u4e2d \udc80")
run_stage_script(main)
"""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    script = f"from subspacelab.pipeline.process import run_stage_script\n{body}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 1
    assert (err.count("\n"), err.startswith("error: ")) == (1, True)
    assert all(word in out for word in ("[/x]", "[red]a", r"\x1b[2J[/]"))


def test_a_reader_that_goes_away_does_not_end_the_work(tmp_path):
    body = "def main():\n    for i in range(99999): print(i)\n    open(sys.argv[0], 'w').close()\n"
    body += f"sys.argv = [{str(tmp_path / 'done')!r}]\nrun_stage_script(main)"
    read, write = os.pipe()
    os.close(read)
    done = run(body, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr, (tmp_path / "done").exists()) == (0, "", True)


def test_what_is_printed_on_a_closed_stdout_goes_into_no_file(tmp_path):
    body = "def main():\n    with open('f', 'w') as f:\n        os.write(1, b'out'); print('out'); f.write('in')\n"
    script = f"import os\nfrom subspacelab.pipeline.process import run_stage_script\n{body}run_stage_script(main)"
    line = ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, script]
    done = subprocess.run(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "f").read_text() == "in"


def test_what_is_registered_for_the_end_is_done():
    body = """
import atexit, tempfile
folder = tempfile.TemporaryDirectory()
atexit.register(print, folder.name)
run_process(lambda: None)
"""
    done = run(body, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()


def test_threads_at_work_are_waited_for_and_idle_ones_are_not():
    body = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
pool.submit(int).result()
def late():
    time.sleep(0.5)
    print("late")
run_process(threading.Thread(target=late).start)
"""
    assert run(body, stdout=subprocess.PIPE).stdout == "late\n"


def test_output_that_cannot_be_written_is_no_success():
    with Path("/dev/full").open("w") as full:
        # Without PYTHONUNBUFFERED the print succeeds, and the flush at the end does not.
        done = run("run_process(lambda: print('lost'))", stdout=full, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert done.returncode == 120  # Python's own code for it
    assert "No space left on device" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["MLP", "more"]])
def test_a_door_without_its_word_says_so(words, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: train_lowrank.py takes <arch>, not {words}; dvc.yaml shows how it is called\n"


def test_names_of_files_are_utf8_in_every_locale_and_the_terminal_keeps_its_encoding(tmp_path):
    body = "def main(word): print(sys.getfilesystemencoding(), sys.stdout.encoding); open(word, 'w').close()\n"
    script = f"import sys\nfrom subspacelab.pipeline.process import run_stage_script\n{body}run_stage_script(main)"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    name = "\u6a21\u578b"
    line = [sys.executable, "-c", script, name]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "utf-8 ascii\n", "")
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_no_utf8_is_refused_before_any_work(capsys):
    from subspacelab.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["rotation", "decompose", "--model-id", "m", "--output-dir", "\udcff"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(r"error: \udcff: not UTF-8")
