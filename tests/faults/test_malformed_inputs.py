"""Every command on inputs that are wrong: one line that names the thing and the remedy, and nothing changed on disk.

The faults are the rows of malformed.py. The folder in which a fault is tried holds earlier results of every command,
and must be the same afterwards to the last byte.
"""

import gc
import logging
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults import damage as d
from tests.faults.malformed import FAULTS, PARAMS, PROJECT, USAGE, Row
from tests.faults.workshop import COMMANDS, run, snapshot
from transformers.utils.logging import warning_once

from subspacelab.pipeline import process

ROOT = Path(__file__).resolve().parents[2]


def named(row: Row) -> object:
    """The row as pytest takes it."""
    return pytest.param(*row, id=f"{row[0]}: {row[1]}")


@pytest.fixture(autouse=True)
def libraries_are_heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Libraries as quiet as in a process of ours; what they log for all that goes to the standard error of the test.

    Without it their handlers write to the one that was there when they were imported, past every test, and what they
    say once is said before.
    """

    def emit(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
        print(handler.format(record), file=sys.stderr)

    monkeypatch.setattr(logging.StreamHandler, "emit", emit)
    warning_once.cache_clear()
    process.quieten_libraries()
    yield
    logging.disable(logging.NOTSET)
    logging.captureWarnings(False)


def check(code: int, err: str, said: str) -> None:
    """One line, which says the parts of `said` in their order, and the exit code of a mistake or of wrong usage."""
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert code == (2 if USAGE in err else 1)
    position = 0
    for part in said.split(" .. "):
        position = err.find(part, position)
        assert position >= 0, f"{part!r} is not where it should be in {err!r}"


@contextmanager
def damaged(whole: Path, place: Path, damage: d.Damage | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within: a damaged copy of `whole` as the working folder; whatever runs in it must leave every file as it was."""
    shutil.copytree(whole, place)
    monkeypatch.chdir(place)
    if damage is not None:
        damage()
    before = snapshot(place)
    yield
    assert snapshot(place) == before


@pytest.mark.parametrize(("command", "what", "damage", "words", "said"), [named(row) for row in FAULTS])
def test_a_fault_is_one_line_and_changes_nothing(
    workshop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    command: str,
    what: str,
    damage: d.Damage | None,
    words: str,
    said: str,
) -> None:
    with damaged(workshop, tmp_path / "place", damage, monkeypatch):
        capfd.readouterr()
        code = run(f"{COMMANDS[command]} {words}")
        check(code, capfd.readouterr().err, said)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own params.yaml, dvc.yaml and doors, with nothing built."""
    place = tmp_path_factory.mktemp("project")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "pipelines", place / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.mark.parametrize(("what", "damage", "said"), [pytest.param(*row, id=row[0]) for row in PARAMS])
def test_parameters_that_are_wrong_stop_a_door_in_one_line(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    what: str,
    damage: d.Damage,
    said: str,
) -> None:
    door, *words = ["scenes"] if "scenes" in what or "of the study" in what else ["decompose", "base"]
    monkeypatch.setattr(sys, "argv", [f"pipelines/{door}.py", *words])
    monkeypatch.setattr(sys, "path", [str(ROOT / "pipelines"), *sys.path])
    monkeypatch.setattr(process, "run_process", lambda work: work())  # this process lives on
    monkeypatch.setattr(gc, "disable", lambda: None)
    with damaged(project, tmp_path / "place", damage, monkeypatch):
        with pytest.raises(SystemExit) as e:
            runpy.run_path(str(ROOT / "pipelines" / f"{door}.py"), run_name="__main__")
        check(int(e.value.code or 0), capfd.readouterr().err, said)


@pytest.mark.parametrize(("command", "what", "damage", "words", "said"), [named(row) for row in PROJECT])
def test_the_commands_of_the_project_refuse_in_one_line(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    command: str,
    what: str,
    damage: d.Damage | None,
    words: str,
    said: str,
) -> None:
    with damaged(project, tmp_path / "place", damage, monkeypatch):
        code = run(words or COMMANDS[command])
        check(code, capfd.readouterr().err, said)


ALONE = ("build: weight of another shape", "build: pickle that runs code", "cache: weight missing")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ALONE)
def test_a_process_of_its_own_says_no_more_than_that(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What libraries log goes past a test's own standard error: here nothing can."""
    command, _, damage, words, said = next(row for row in FAULTS if f"{row[0]}: {row[1]}" == fault)
    assert damage is not None
    place = tmp_path / "place"
    line = [sys.executable, "-m", "subspacelab", *COMMANDS[command].split(), *words.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with damaged(workshop, place, damage, monkeypatch):
        done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
        check(done.returncode, done.stderr, said)
        assert not (place / "ran").exists()


def test_every_command_has_its_rows() -> None:
    assert {command for command, *_ in (*FAULTS, *PROJECT)} == set(COMMANDS)
