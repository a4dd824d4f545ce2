"""A training that was killed, wherever it was, ends with the bytes of an unbroken one."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import JOB_NAMES, JOBS, RANK, Killed, contents, kill_at, killed_in, train_tiny

from subspacelab.core.ownership import sole_writer
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.state import load_model
from subspacelab.lowrank.training import resume_training

jobs = pytest.mark.parametrize(("arch", "given"), JOBS, ids=JOB_NAMES)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def unbroken(features: Features, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a training of a sketch leaves that nothing stopped."""
    return contents(train_tiny(features, tmp_path_factory.mktemp("unbroken")).folder)


@pytest.mark.slow
@jobs
def test_a_killed_training_continues_to_the_same_bytes(
    features: Features, tmp_path: Path, arch: str, given: dict[str, Any]
) -> None:
    whole = contents(train_tiny(features, tmp_path / "whole", arch, **given).folder)
    for epoch in (1, 2, 3):
        results = tmp_path / f"killed-at-{epoch}"
        with pytest.raises(Killed):
            train_tiny(features, results, arch, log=kill_at(epoch), **given)
        logged = []
        broken = train_tiny(features, results, arch, log=lambda _, step, to=logged: to.append(step), **given)
        assert contents(broken.folder) == whole, f"killed at {epoch}"
        assert logged == list(range(epoch + 1, 4))


@pytest.mark.parametrize("written", ["write_model", "write_json", "write_training"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_training_killed_between_two_files_continues_to_the_same_bytes(
    features: Features,
    unbroken: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    call: int,
) -> None:
    with killed_in(monkeypatch, written, call) as calls:
        try:
            train_tiny(features, tmp_path / "broken")
        except Killed:
            assert len(calls) == call
        else:
            assert len(calls) < call <= 4, "there are at least three calls of each"
    assert contents(train_tiny(features, tmp_path / "broken").folder) == unbroken


@jobs
def test_a_finished_training_is_left_as_it_is(
    features: Features, tmp_path: Path, arch: str, given: dict[str, Any]
) -> None:
    first = train_tiny(features, tmp_path, arch, epochs=2, **given)
    before = contents(first.folder)
    again = train_tiny(features, tmp_path, arch, epochs=2, log=kill_at(1), **given)
    assert contents(first.folder) == before
    assert again.progress == first.progress


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": 2e-3}, "lr=0.001, .* lr=0.002"),
        ({"seed": 4}, "seed=3, .* seed=4"),
        ({"rank": RANK + 1}, "rank=4, .* rank=5"),
        ({"epochs": 2}, "epochs=3, .* epochs=2"),
        ({"lambda_B": 0.1}, "lambda_B=0.0001, .* lambda_B=0.1"),
    ],
)
def test_another_training_in_the_folder_is_refused_with_both_settings(
    features: Features, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(Killed):
        train_tiny(features, tmp_path, log=kill_at(1))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"Sketch: holds a result of {said}; give another place") as e:
        train_tiny(features, tmp_path, **changed)
    assert "\n" not in str(e.value)
    assert contents(tmp_path) == before


def test_a_training_on_other_features_is_refused(tmp_path: Path) -> None:
    one, other = write_random_cache(tmp_path / "one"), write_random_cache(tmp_path / "other", count=27)
    before = contents(train_tiny(one, tmp_path / "results", epochs=1).folder)
    with pytest.raises(ValueError, match="Sketch: trained on other features than those in .*other; choose another"):
        train_tiny(other, tmp_path / "results", epochs=1)
    assert contents(tmp_path / "results" / "Sketch") == before


@pytest.mark.parametrize("name", ["notes.txt", "best_model.safetensors", "loss_curves.png"])
def test_a_folder_of_others_is_refused_by_name(features: Features, tmp_path: Path, name: str) -> None:
    place = tmp_path / "Sketch" / name
    place.parent.mkdir()
    place.write_text("mine")
    with pytest.raises(ValueError, match=f"Sketch: holds '{name}', no part of a training that can be continued"):
        train_tiny(features, tmp_path)
    assert contents(tmp_path) == {f"Sketch/{name}": b"mine"}


def test_a_link_among_the_results_is_refused_and_the_folder_may_be_one(features: Features, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "Sketch").symlink_to(tmp_path / "disk")
    train_tiny(features, tmp_path / "results", epochs=1)
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "disk" / "history.json").unlink()
    (tmp_path / "disk" / "history.json").symlink_to(tmp_path / "mine.json")
    with pytest.raises(ValueError, match=r"history\.json: a symbolic link among what is written here"):
        train_tiny(features, tmp_path / "results", epochs=1)
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_results_do_not_go_into_the_features(tmp_path: Path) -> None:
    features = write_random_cache(tmp_path / "cache")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="lies within, the input"):
        train_tiny(features, tmp_path / "cache")
    assert contents(tmp_path) == before


def test_a_second_writer_is_refused(features: Features, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "Sketch"), pytest.raises(ValueError, match="another command is writing there"):
        train_tiny(features, tmp_path)
    assert not (tmp_path / "Sketch").exists()


def _flip(content: bytes) -> bytes:
    """One bit of the last tensor."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", ["last.safetensors", "best_state.safetensors"])
@pytest.mark.parametrize(
    "spoil", [_flip, lambda _: b"not a state", lambda content: content.replace(b"steps", b"stepz")]
)
def test_a_damaged_state_is_named_and_nothing_changes(
    features: Features, tmp_path: Path, name: str, spoil: Any
) -> None:
    folder = train_tiny(features, tmp_path, epochs=1).folder
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    before = contents(folder)
    with pytest.raises(ValueError, match=name) as e:
        resume_training(features, tmp_path, arch="Sketch", epochs=1, device="cpu")
    assert "\n" not in str(e.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["best_model.safetensors", "best_model.json", "history.json"])
def test_what_a_finished_training_has_left_is_mended(features: Features, tmp_path: Path, name: str) -> None:
    result = train_tiny(features, tmp_path, "MLP", epochs=3, lr=3e-3, start="random")
    folder, before = result.folder, contents(result.folder)
    for content in (b"junk", _flip(before[name])):
        (folder / name).write_bytes(content)
        train_tiny(features, tmp_path, "MLP", epochs=3, lr=3e-3, start="random")
        assert contents(folder) == before
    if name == "best_model.json":  # of a training that goes on, too: no later epoch may be better
        (folder / name).write_bytes(b"junk")
        best = result.progress.best_epoch
        with pytest.raises(Killed):
            resume_training(features, tmp_path, arch="MLP", epochs=1, device="cpu", log=kill_at(best + 1))
        assert load_model(folder).epoch == best
        (folder / name).unlink()
        (folder / name).mkdir()
        before = contents(folder)
        with pytest.raises(IsADirectoryError):
            resume_training(features, tmp_path, arch="MLP", epochs=2, device="cpu")
        assert contents(folder) == before


def test_a_model_is_no_state(features: Features, tmp_path: Path) -> None:
    folder = train_tiny(features, tmp_path, epochs=1).folder
    (folder / "last.safetensors").write_bytes((folder / "best_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"last\.safetensors: not a training's state"):
        train_tiny(features, tmp_path, epochs=1)
