"""The outermost frame of a process: words in, exit code out, and nothing lost on the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOOR = Path(__file__).resolve().parents[1] / "pipelines" / "train_lowrank.py"


def run(body: str, *words: str, **streams) -> subprocess.CompletedProcess:
    script = f"import sys\nfrom subspacelab.doors import run_door, run_process\n{body}"
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
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", 130, "error: interrupted; run the same command again to continue"),
    ],
)
def test_a_process_ends_with_the_code_and_the_words_of_its_work(end, code, said):
    done = run(f"def main():\n    print('out')\n    {end}\nrun_door(main)", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (code, "out\n")
    assert (done.stderr.splitlines() or [""])[-1] == said


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


@pytest.mark.parametrize("words", [[], ["MLP", "more"]])
def test_a_door_without_its_word_says_so(words, tmp_path):
    done = subprocess.run([sys.executable, DOOR, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: train_lowrank.py takes <arch>, not {words}; dvc.yaml shows how it is called\n"
