"""A training that was killed, wherever it was, ends with the bytes of an unbroken one."""

from pathlib import Path
from typing import Any

import pytest
from tests.lowrank.caches import write_random_cache
from tests.lowrank.trainings import JOB_NAMES, JOBS, RANK, Killed, contents, kill_at, killed_in, train_tiny

from subspacelab.lowrank.features import Features

jobs = pytest.mark.parametrize(("arch", "given"), JOBS, ids=JOB_NAMES)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"))


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
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, call: int
) -> None:
    whole = contents(train_tiny(features, tmp_path / "whole").folder)
    with killed_in(monkeypatch, written, call) as calls:
        try:
            train_tiny(features, tmp_path / "broken")
        except Killed:
            assert len(calls) == call
        else:
            assert len(calls) < call <= 4, "there are at least three calls of each"
    assert contents(train_tiny(features, tmp_path / "broken").folder) == whole


@jobs
def test_a_finished_training_is_left_as_it_is(
    features: Features, tmp_path: Path, arch: str, given: dict[str, Any]
) -> None:
    first = train_tiny(features, tmp_path, arch, epochs=2, **given)
    before = contents(first.folder)
    again = train_tiny(features, tmp_path, arch, epochs=2, log=kill_at(1), **given)
    assert contents(first.folder) == before
    assert again.progress == first.progress


@pytest.mark.parametrize("changed", [{"lr": 2e-3}, {"seed": 4}, {"rank": RANK + 1}, {"epochs": 2}, {"lambda_B": 0.1}])
def test_the_state_of_another_training_is_not_continued(
    features: Features, tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        train_tiny(features, tmp_path / "mixed", log=kill_at(2))
    mixed = train_tiny(features, tmp_path / "mixed", **changed)
    assert contents(mixed.folder) == contents(train_tiny(features, tmp_path / "alone", **changed).folder)


def test_features_that_changed_are_trained_on_from_the_start(tmp_path: Path) -> None:
    one = write_random_cache(tmp_path / "one")
    other = write_random_cache(tmp_path / "other", count=27)
    with pytest.raises(Killed):
        train_tiny(one, tmp_path / "mixed", log=kill_at(2))
    mixed = train_tiny(other, tmp_path / "mixed")
    assert contents(mixed.folder) == contents(train_tiny(other, tmp_path / "alone").folder)


def test_a_broken_state_is_named(features: Features, tmp_path: Path) -> None:
    result = train_tiny(features, tmp_path, epochs=1)
    model = (result.folder / "best_model.safetensors").read_bytes()
    for content in (b"not a state", model):
        (result.folder / "last.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.safetensors") as e:
            train_tiny(features, tmp_path, epochs=1)
        assert "\n" not in str(e.value)
