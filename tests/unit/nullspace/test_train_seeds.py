"""One method over its seeds, and all methods in one comparison, as the pipeline runs them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pandas as pd
import pytest
from tests.unit.nullspace.trainings import ROWS, SETTINGS, Killed, contents, known, write_adapter_of, write_base
from tests.unit.nullspace.verifications import init_of, trained_of

from subspacelab.core.files import read_json
from subspacelab.core.settings import validate
from subspacelab.data.instructions import write_instructions
from subspacelab.models.lora_folder import base_of
from subspacelab.nullspace.comparison import compare_methods
from subspacelab.nullspace.config import KnowledgeSettings, TrainAdapterConfig
from subspacelab.nullspace.logging import record_seeds, stage_model, track_study
from subspacelab.nullspace.paths import first_adapter, seed_folders
from subspacelab.nullspace.plots import draw_pictures
from subspacelab.nullspace.rates import Training, read_knowledge, write_knowledge
from subspacelab.nullspace.results import write_stats
from subspacelab.nullspace.train_seeds import train_seeds
from subspacelab.tracking import MemoryTracker


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of lora_null_v2 in `built`, and rows; to be read only."""
    folder = write_base(tmp_path_factory.mktemp("seeds"))
    for seed in (12, 5):
        write_adapter_of(folder, folder / "built" / f"seed-{seed}", seed=seed)
    write_instructions(folder / "rows.jsonl", ROWS)
    return folder


def config_of(place: Path, *, knowledge: bool = True, factors: Sequence[float] = (1.0,)) -> TrainAdapterConfig:
    rows, text = str(place / "rows.jsonl"), str(place / "text.txt")
    asked = KnowledgeSettings(rows, rows, rows, text, num_windows=2, seq_len=16) if knowledge else None
    return TrainAdapterConfig(**(vars(SETTINGS) | {"data": rows}), knowledge=asked, rate_factors=list(factors))


def run(place: Path, root: Path, tracker: Any, **given: Any) -> list[Training]:
    work = root / "work"
    work.mkdir(parents=True, exist_ok=True)
    result = train_seeds(place / "built", work, settings=config_of(place, **given), log=tracker.log_metrics)
    result.save(root / "knowledge.json")
    record_seeds(result, tracker)
    result.move(root / "trained")
    return result.trainings


@pytest.mark.slow
def test_every_seed_is_trained_examined_and_recorded(place: Path, tmp_path: Path) -> None:
    tracker = MemoryTracker()
    found = run(place, tmp_path, tracker)
    assert [(t.seed, t.rate, t.chosen) for t in found] == [(5, 0.01, True), (12, 0.01, True)]
    assert sorted(p.name for p in (tmp_path / "trained").iterdir()) == ["seed-12", "seed-5"]
    assert sorted(p.name for p in (tmp_path / "trained" / "seed-5").iterdir()) == ["ft"]
    one, two = (contents(tmp_path / "trained" / f"seed-{seed}") for seed in (5, 12))
    assert one != two, "the seed orders the rows"
    assert len(tracker.metrics["train_loss"]) == len(tracker.metrics["seed-12/train_loss"]) == SETTINGS.max_steps
    assert {m.name for m in tracker.models.values()} == {f"nullspace_lora_null_v2_seed_{s}" for s in (5, 12)}
    ((_, recall),) = tracker.metrics["built_recall"]
    assert recall == pytest.approx(sum(t.knowledge.recall for t in found) / 2)
    assert tracker.headline == {}, "compare_stats says which methods' numbers are headlines"
    for seed, training in zip((5, 12), found, strict=True):
        card = (tmp_path / "trained" / f"seed-{seed}" / "ft" / "README.md").read_text()
        assert f"| new problems solved | 0 | {training.knowledge.task:.4g} |" in card
    assert read_knowledge(tmp_path / "knowledge.json")[1] == found


@pytest.mark.slow
def test_of_several_rates_the_one_chosen_on_validation_is_handed_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[float, float]] = []

    def choose(found: dict[float, float], num_problems: int) -> float:
        asked.append(dict(found))
        return 0.005

    monkeypatch.setattr("subspacelab.nullspace.train_seeds.choose_rate", choose)
    tracker = MemoryTracker()
    found = run(place, tmp_path, tracker, factors=(2.0, 0.5))
    assert [(t.rate, t.seed, t.chosen) for t in found] == [
        *((0.005, 5, True), (0.005, 12, True)),
        *((0.02, 5, False), (0.02, 12, False)),
    ]
    means = {r: sum(t.knowledge.validation for t in found if t.rate == r) / 2 for r in (0.005, 0.02)}
    assert asked == [pytest.approx(means)]
    handed_on = read_json(tmp_path / "trained" / "seed-12" / "ft" / "nullspace.json")
    assert handed_on["trained"]["job"]["lr"] == 0.005
    assert {"rate-0.005/train_loss", "rate-0.02/seed-12/train_loss"} <= set(tracker.metrics)


@pytest.mark.slow
def test_a_run_that_was_killed_at_the_second_seed_keeps_the_first(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "whole", MemoryTracker())

    class Dying(MemoryTracker):
        def log_metrics(self, metrics: Any, step: int = 0) -> None:
            if "seed-12/train_loss" in metrics and step == 4:
                raise Killed

    with pytest.raises(Killed):
        run(place, tmp_path / "broken", Dying())
    assert not (tmp_path / "broken" / "trained").exists()
    tracker = MemoryTracker()
    run(place, tmp_path / "broken", tracker)
    assert "train_loss" not in tracker.metrics
    assert contents(tmp_path / "broken" / "trained") == contents(tmp_path / "whole" / "trained")
    assert (tmp_path / "broken" / "knowledge.json").read_bytes() == (tmp_path / "whole" / "knowledge.json").read_bytes()


@pytest.mark.slow
def test_without_facts_to_ask_the_file_says_so(place: Path, tmp_path: Path) -> None:
    assert run(place, tmp_path, MemoryTracker(), knowledge=False) == []
    assert read_json(tmp_path / "knowledge.json") == {"base": None, "trainings": []}
    with pytest.raises(ValueError, match="rate_factors: knowledge is null"):
        config_of(place, knowledge=False, factors=(1.0, 2.0))


def test_a_misspelt_setting_is_refused_wherever_it_stands() -> None:
    asked = {"facts": "a", "task": "b", "validation": "b", "text": "c"}
    for wrong, key in (({"knowledge": asked | {"seqlen": 4}}, "knowledge.seqlen"), ({"step": 4}, "step")):
        with pytest.raises(ValueError, match=rf"train_adapter\.{key}"):
            validate(TrainAdapterConfig, {"data": "x", "knowledge": asked} | wrong, where="train_adapter")


def test_a_stage_without_adapters_before_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage before"):
        seed_folders(tmp_path)


def test_the_first_seeds_adapter_is_the_trained_one_where_there_is_one(place: Path, tmp_path: Path) -> None:
    copytree(place / "built", tmp_path, dirs_exist_ok=True)
    assert first_adapter(tmp_path) == tmp_path / "seed-5"
    (tmp_path / "seed-12" / "ft").mkdir()
    assert first_adapter(tmp_path) == tmp_path / "seed-5"
    (tmp_path / "seed-5" / "ft").mkdir()
    assert first_adapter(tmp_path) == tmp_path / "seed-5" / "ft"
    copytree(place / "built" / "seed-5", tmp_path / "copy")
    with pytest.raises(ValueError, match="copy and .*seed-5: adapters of one seed"):
        seed_folders(tmp_path)


def test_a_model_for_the_tracker_carries_its_small_base_and_points_to_a_commit(place: Path, tmp_path: Path) -> None:
    meta = read_json(place / "built" / "seed-5" / "nullspace.json")
    base = base_of(meta)
    stage_model(tmp_path / "small", place / "built" / "seed-5", base)
    assert contents(tmp_path / "small" / "base") == contents(place / "lm")
    stage_model(tmp_path / "hub", place / "built" / "seed-5", replace(base, reference="org/name", revision="abc"))
    pointer = {"reference": "org/name", "revision": "abc"}
    assert read_json(tmp_path / "hub" / "base" / "reference.json") == pointer
    assert [p.name for p in (tmp_path / "hub" / "base").iterdir()] == ["reference.json"]


def write_study(folder: Path) -> None:
    for i, method in enumerate(("lora", "lora_null_v2")):
        kind = {"method": method, "down_frozen": method != "lora"}
        write_stats(folder / f"verify/{method}-init.json", init_of(kind))
        write_stats(folder / f"verify/{method}-trained.json", trained_of(kind))
        trainings = [Training(s, 1e-3, True, known(0.4 * i + s / 100, 0.9)) for s in (1, 2, 3)]
        write_knowledge(folder / f"knowledge/{method}.json", known(1.0, 0.0), trainings)


def test_methods_are_compared_with_the_base_first_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write_study(tmp_path)
    methods = ["lora_null_v2", "lora"]
    for name in ("a", "b"):
        found = compare_methods(tmp_path / "verify", tmp_path / "knowledge", methods)
        found.save(tmp_path / name)
        draw_pictures(tmp_path / name, found)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    wanted = {"stats.csv", "metrics.json", "before_after.png", "bx_ratio.png", "knowledge.png", "knowledge.csv"}
    wanted |= {f"knowledge_{name}.csv" for name in ("trainings", "equal_task", "differences")}
    assert set(contents(tmp_path / "a")) == wanted
    table = pd.read_csv(tmp_path / "a" / "knowledge.csv")
    assert list(table["method"]) == ["base", *methods]
    assert table["recall_mean"].tolist() == pytest.approx([1.0, 0.42, 0.02])
    metrics = read_json(tmp_path / "a" / "metrics.json")
    assert metrics["base"]["knowledge"]["recall"] == 1.0
    assert metrics["lora_null_v2"]["failed_expectations"] == 0
    assert metrics["lora"]["trained"]["BX_ratio"] == 0.04
    assert set(found.stats["method"]) == set(methods)
    tracker = MemoryTracker()
    track_study(found, [], tracker)
    assert tracker.headline == found.headline
    assert found.headline["lora_recall"] == metrics["lora"]["knowledge"]["recall"]
    assert found.headline["lora_BX_ratio"] == 0.04
    numbers = {f"{method}_{name}" for method in methods for name in ("recall", "task", "BX_ratio")}
    assert set(found.headline) == {"random_BX_ratio"} | numbers


def test_knowledge_of_another_base_is_not_put_into_the_same_table(tmp_path: Path) -> None:
    write_study(tmp_path)
    other = known(0.5, 0.0)
    write_knowledge(tmp_path / "knowledge/lora.json", other, [Training(1, 1e-3, True, other)])
    with pytest.raises(ValueError, match=r"lora\.json: its base was measured with other results"):
        compare_methods(tmp_path / "verify", tmp_path / "knowledge", ["lora_null_v2", "lora"])


def test_a_study_without_facts_is_compared_all_the_same(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_knowledge(tmp_path / "knowledge/lora.json", None, [])
    found = compare_methods(tmp_path / "verify", tmp_path / "knowledge", ["lora"])
    assert found.knowledge.empty
    assert all(path.is_file() for path in draw_pictures(tmp_path / "out", found))
    assert "base" not in found.metrics
