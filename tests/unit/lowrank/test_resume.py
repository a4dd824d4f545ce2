"""More epochs from the best model: as if it had never stopped, and nothing else touched."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import (
    ALLOCATOR,
    JOB_NAMES,
    JOBS,
    RANK,
    Killed,
    contents,
    kill_at,
    killed_in,
    train_tiny,
)

from subspacelab.lowrank.features import Features
from subspacelab.lowrank.training import TrainingResult, resume_training

# With these the validation MSE falls from epoch 1 to 2, so that after two the best model is the last.
FALLING = {
    "ResMLP": {"lr": 1e-3, "dropout": 0.05},
    "MLP": {"lr": 1e-2, "dropout": 0.05},
    "AdaLoRA": {"lr": 1e-2, "dropout": 0.05},
    "Sketch": {"lr": 1e-4, "start": "random"},
}
SKETCH = FALLING["Sketch"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    return write_random_cache(tmp_path_factory.mktemp("cache"))


def resume(features: Features, results: Path, arch: str = "Sketch", *, epochs: int = 2, **given: Any) -> TrainingResult:
    return resume_training(features, results, arch=arch, epochs=epochs, device="cpu", **given)


@pytest.mark.parametrize("arch", FALLING)
def test_n_epochs_and_m_more_are_n_plus_m(features: Features, tmp_path: Path, arch: str) -> None:
    whole = train_tiny(features, tmp_path / "whole", arch, epochs=4, **FALLING[arch])
    assert train_tiny(features, tmp_path / "parts", arch, epochs=2, **FALLING[arch]).progress.best_epoch == 2
    parts = resume(features, tmp_path / "parts", arch, asked={"rank": RANK})
    assert parts.progress == whole.progress
    for name in ("best_model.safetensors", "best_model.json", "history.json"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_it_goes_on_from_the_best_and_not_from_the_last(features: Features, tmp_path: Path) -> None:
    first = train_tiny(features, tmp_path, "MLP", epochs=4, lr=3e-3, start="random")
    best = first.progress.best_epoch
    assert best < first.progress.epoch
    resumed = resume(features, tmp_path, "MLP", epochs=1)
    assert resumed.progress.epoch == best + 1
    assert resumed.progress.history[:best] == first.progress.history[:best]
    assert resumed.progress.best_mse <= first.progress.best_mse


def test_a_training_that_was_resumed_is_not_trained_anew(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, "Sketch", epochs=2, **SKETCH)
    before = contents(resume(features, tmp_path).folder)
    with pytest.raises(ValueError, match="resumed since it was trained; go on with --resume"):
        train_tiny(features, tmp_path, "Sketch", epochs=2, **SKETCH)
    assert contents(tmp_path / "Sketch") == before


def test_an_allocator_stays_at_its_final_budget(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, "AdaLoRA", **ALLOCATOR)
    history = resume(features, tmp_path, "AdaLoRA", epochs=3).progress.history
    assert len(history) >= 4
    assert {entry["live_rank"] for entry in history[2:]} == {RANK / 2}  # the schedule ends with the third epoch


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "given"), JOBS, ids=JOB_NAMES)
def test_a_killed_resume_continues_to_the_same_bytes(
    features: Features, tmp_path: Path, arch: str, given: dict[str, Any]
) -> None:
    trained = train_tiny(features, tmp_path / "whole", arch, **given)
    shutil.copytree(trained.folder, tmp_path / "broken" / arch)
    whole = contents(resume(features, tmp_path / "whole", arch).folder)
    with pytest.raises(Killed):
        resume(features, tmp_path / "broken", arch, log=kill_at(trained.progress.best_epoch + 1))
    assert contents(resume(features, tmp_path / "broken", arch).folder) == whole


@pytest.mark.parametrize(
    ("written", "call"),
    [(name, call) for name in ("write_model", "write_json") for call in (1, 2)]
    + [("write_training", call) for call in (1, 2, 3, 4)],
)
def test_a_resume_killed_between_two_files_continues_to_the_same_bytes(
    features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, call: int
) -> None:
    trained = train_tiny(features, tmp_path / "whole", epochs=1, **SKETCH).folder
    shutil.copytree(trained, tmp_path / "broken" / "Sketch")
    whole = resume(features, tmp_path / "whole")
    assert whole.progress.best_epoch == 3
    with killed_in(monkeypatch, written, call), pytest.raises(Killed):
        resume(features, tmp_path / "broken")
    assert contents(resume(features, tmp_path / "broken").folder) == contents(whole.folder)


def test_a_finished_resume_is_followed_by_another(features: Features, tmp_path: Path) -> None:
    train_tiny(features, tmp_path, epochs=1, **SKETCH)
    for until in (3, 5):
        assert resume(features, tmp_path).progress.epoch == until


def test_a_source_stays_as_it_is_and_the_copy_is_continued_once(features: Features, tmp_path: Path) -> None:
    source = train_tiny(features, tmp_path / "trained", epochs=2, **SKETCH).folder
    before, results = contents(source), tmp_path / "results"
    first = resume(features, results, source=source)
    assert first.progress.epoch == 4
    assert contents(source) == before
    after = contents(first.folder)
    again = resume(features, results, source=source, log=kill_at(3))  # nothing is left to log
    assert again.progress == first.progress
    assert contents(first.folder) == after
    assert contents(source) == before


def test_a_killed_continuation_of_a_source_goes_on(features: Features, tmp_path: Path) -> None:
    source = train_tiny(features, tmp_path / "trained", epochs=2, **SKETCH).folder
    whole = resume(features, tmp_path / "whole", source=source)
    with pytest.raises(Killed):
        resume(features, tmp_path / "broken", source=source, log=kill_at(3))
    logged = []
    broken = resume(features, tmp_path / "broken", source=source, log=lambda _, step: logged.append(step))
    assert contents(broken.folder) == contents(whole.folder)
    assert logged == [4]


def test_another_setting_is_refused_by_its_name(features: Features, tmp_path: Path) -> None:
    folder = train_tiny(features, tmp_path, "AdaLoRA", epochs=1).folder
    before = contents(folder)
    for asked, said in (
        ({"rank": 5}, f"rank={RANK}, asked for rank=5; .* leave --rank out"),
        ({"rank": RANK, "lr": 1e-2}, r"lr=0.001 \(0.001 by now\), asked for lr=0.01; .* leave --lr out"),
        ({"allocator_keep_ratio": 0.5}, "allocator_keep_ratio=0.25, asked .* leave --allocator-keep-ratio out"),
    ):
        with pytest.raises(ValueError, match=f"was trained with {said}") as e:
            resume(features, tmp_path, "AdaLoRA", asked=asked)
        assert "\n" not in str(e.value)
    assert contents(folder) == before
    resume(features, tmp_path, "AdaLoRA", epochs=1, asked={"lr": 1e-3, "epochs": 7, "device": "cpu"})


def test_another_architecture_in_the_folder_is_refused(features: Features, tmp_path: Path) -> None:
    folder = train_tiny(features, tmp_path, "Sketch", epochs=1).folder
    folder.rename(tmp_path / "MLP")
    with pytest.raises(ValueError, match="arch='Sketch', asked for arch='MLP'"):
        resume(features, tmp_path, "LowRankProjMLP")


def test_nothing_to_resume_is_said(features: Features, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        resume(features, tmp_path)


@pytest.mark.parametrize("other", [{"count": 27}, {"dim": 10}], ids=["pictures", "width"])
def test_other_features_are_refused(features: Features, tmp_path: Path, other: dict[str, int]) -> None:
    folder = train_tiny(features, tmp_path, epochs=1).folder
    before = contents(folder)
    with pytest.raises(ValueError, match="features") as e:
        resume(write_random_cache(tmp_path / "other", **other), tmp_path)
    assert "\n" not in str(e.value)
    assert contents(folder) == before
