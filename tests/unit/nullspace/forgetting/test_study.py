"""The study on a tiny model: what it trains in which order, what a kill costs, and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.nullspace.forgetting.chat_model import PROBES, byte_tokenizer, tiny_llama
from tests.unit.nullspace.trainings import Killed, contents

from subspacelab.checkpoints import Source, resolve_reference
from subspacelab.cli import main
from subspacelab.nullspace.config import ForgettingSettings
from subspacelab.nullspace.forgetting import materials
from subspacelab.nullspace.forgetting.results import Forgetting, name_of
from subspacelab.nullspace.forgetting.study import rates_of, run_study

SETTINGS = ForgettingSettings(
    methods=["lora_mlp", "lora_null_v2"],
    seeds=[5, 6],
    rate_factors=[1.0, 20.0],
    rank=4,
    steps=4,
    batch_size=4,
    num_validation=4,
    num_test=4,
    num_windows=2,
    seq_len=16,
    calib_loader_size=8,
    calib_seq_len=32,
    allow_few_tokens=True,
    device="cpu",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A tiny model, which is asked six probes in place of the hundreds there are."""
    folder = tmp_path_factory.mktemp("lm")
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(materials, "asked_probes", lambda probes: PROBES)
        yield resolve_reference(str(folder))


def run(source: Source, folder: Path, **changes: Any) -> Forgetting:
    after = changes.pop("after", lambda found: None)
    return run_study(source, folder, settings=replace(SETTINGS, **changes), after=after)


def results(folder: Path) -> dict[str, bytes]:
    """All files but the seconds, which no two runs share."""
    return {name: data for name, data in contents(folder).items() if "seconds" not in name}


@pytest.fixture(scope="module")
def finished(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forgetting]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(source, folder)


def test_rates_are_tried_on_the_first_seed_and_the_chosen_one_on_the_others(
    finished: tuple[Path, Forgetting],
) -> None:
    folder, found = finished
    assert [c.method for c in found.curves] == 3 * SETTINGS.methods  # a first table of all methods as soon as can be
    mlp, null = ([(c.rate, c.seed) for c in found.curves if c.method == m] for m in SETTINGS.methods)
    assert mlp[:2] == [(1e-3, 5), (2e-2, 5)]
    assert null[:2] == [(3e-3, 5), (6e-2, 5)]
    assert mlp[2:] == [(found.chosen["lora_mlp"], 6)]
    assert null[2:] == [(found.chosen["lora_null_v2"], 6)]
    assert all([point.step for point in curve.points] == [1, 2, 4] for curve in found.curves)  # an eighth of 4 is 1 too
    assert {p.name for p in folder.iterdir()} == {"job.json", "base.safetensors", "calibration", "trainings"}
    assert set(found.seconds) == {name_of(c.method, c.rate, c.seed) for c in found.curves}


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_bytes(
    source: Source, finished: tuple[Path, Forgetting], tmp_path: Path
) -> None:
    seen = []

    def after(found: Forgetting) -> None:
        seen.append(len(found.curves))
        if len(seen) == 4:
            raise Killed

    with pytest.raises(Killed):
        run(source, tmp_path, after=after)
    (tmp_path / f".pareto.png.{'0' * 32}.partial").mkdir()  # what `kill -9` leaves of a file that was being written
    again = run(source, tmp_path, after=after)
    assert seen == [1, 2, 3, 4, *range(1, 7)]
    assert replace(again, seconds={}) == replace(finished[1], seconds={})
    assert results(tmp_path) == results(finished[0])


@pytest.mark.slow
def test_a_finished_study_takes_more_methods_and_trains_nothing_again(
    source: Source, finished: tuple[Path, Forgetting], tmp_path: Path
) -> None:
    for name, data in contents(finished[0]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    curves = sorted((tmp_path / "trainings").rglob("curve.json"))
    before = {path: path.stat().st_mtime_ns for path in curves}
    more = run(source, tmp_path, methods=["lora_null_v2", "mica", "lora_mlp"], seeds=[5, 6])
    assert {c.method for c in more.curves} == {*SETTINGS.methods, "mica"}
    assert {path: path.stat().st_mtime_ns for path in curves} == before


def test_what_is_of_another_study_is_refused(source: Source, finished: tuple[Path, Forgetting], tmp_path: Path) -> None:
    folder, _ = finished
    with pytest.raises(ValueError, match=r"holds a result of steps=4, this one is of steps=5"):
        run(source, folder, steps=5)
    with pytest.raises(ValueError, match=r"^method='nosuch': allowed are lora"):
        run(source, tmp_path / "new", methods=["lora", "nosuch"])
    with pytest.raises(ValueError, match=r"^dtype='bfloat16': full trains the weights themselves; take float32"):
        run(source, tmp_path / "new", methods=["lora", "full"], dtype="bfloat16")
    with pytest.raises(ValueError, match=r"lies within, the input"):
        run(source, source.folder / "study")
    assert not (tmp_path / "new").exists()
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'letter.txt', no part of a study of forgetting"):
        run(source, tmp_path)


def test_settings_may_be_corrected_as_long_as_nothing_has_trained(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^rank 1000 is larger than the input of"):
        run(source, tmp_path, rank=1000, methods=["lora"])
    found = run(source, tmp_path, methods=["lora"], seeds=[5], rate_factors=[1.0])
    assert [len(curve.points) for curve in found.curves] == [3]


def test_rates_have_two_digits_and_may_be_given() -> None:
    assert rates_of("lora", replace(SETTINGS, rate_factors=[1.0, 0.4, 2.5])) == [1e-3, 4e-4, 2.5e-3]
    assert rates_of("lora", replace(SETTINGS, rate_by_method={"lora": 1 / 3})) == [0.33, 6.7]


@pytest.mark.slow
def test_as_a_person_types_it(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["--steps", "4", "--batch-size", "4", "--rank", "4", "--num-validation", "4", "--num-test", "4"]
    small += ["--num-windows", "2", "--seq-len", "16", "--device", "cpu", "--no-track"]
    command = ["nullspace", "forgetting", "--model-id", str(source.folder), "--output-dir", str(tmp_path / "out")]
    command += ["--methods", "lora_mlp", "--methods", "mica", "--seeds", "5", "--rate-factors", "1"]
    with pytest.raises(SystemExit) as e:
        main([*command, *small])
    assert not e.value.code
    said = capsys.readouterr().out
    assert "mica" in said
    assert "these where the task first reaches" in " ".join(said.split())
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written >= {"results.json", "knowledge.csv", "curves.csv", "costs.csv", "pareto.png"}
    assert Forgetting.load(tmp_path / "out").model_id == source.name  # and no path of this machine
    with pytest.raises(SystemExit) as e:
        main([*command, *small, "--steps", "8"])
    assert e.value.code
    assert "steps=4, this one is of steps=8" in capsys.readouterr().err
