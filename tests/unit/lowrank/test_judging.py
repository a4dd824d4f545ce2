"""Approximations judged by the box that a language model finds by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.lowrank.trainings import train_tiny
from tests.unit.synthetic.tiny import TINY

from subspacelab.data.grounding import read_grounding, write_grounding
from subspacelab.data.pictures import Picture, square
from subspacelab.lowrank.baselines import CONTROLS, SVD
from subspacelab.lowrank.comparison import Comparison, compare
from subspacelab.lowrank.extraction import extract
from subspacelab.lowrank.features import Features
from subspacelab.lowrank.judging import open_judge, read_questions
from subspacelab.lowrank.preparation import Normalisation
from subspacelab.lowrank.storage import COMPUTED, X
from subspacelab.lowrank.storage_plots import PICTURES, draw_pictures
from subspacelab.synthetic.grounding.model import GroundingModel, build_model, decode_boxes, encode_prompts
from subspacelab.synthetic.grounding.scenes import SceneSet
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer

RANK, SEED, SIZE = 4, 3, 112


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, scenes whose boxes are its own answers, its features of them, and a Sketch; to be read only."""
    folder, tokenizer = tmp_path_factory.mktemp("judged"), build_tokenizer()
    model = build_model(tokenizer, seed=9, sizes=TINY, initializer_range=0.5).eval()
    GroundingModel(model, tokenizer).save(folder / "base")
    scenes = list(SceneSet(60, SIZE, 7))
    pixels = torch.stack([square(Picture(s.dataset_id, s.image_bytes), SIZE).pixels for s in scenes])
    batch = encode_prompts(tokenizer, pixels, [s.question for s in scenes])
    boxes = decode_boxes(model, tokenizer, batch, size=SIZE).boxes.tolist()
    write_grounding(
        folder / "scenes/own.parquet", [replace(s, bbox=tuple(box)) for s, box in zip(scenes, boxes, strict=True)]
    )
    features = extract(folder / "base", folder / "scenes", image_size=SIZE, output_dir=folder / "features")
    train_tiny(features, folder / "results", "Sketch", epochs=1, rank=RANK, seed=SEED)
    return folder


def judged(place: Path, **more: object) -> Comparison:
    given = {"judge": place / "base", "images": place / "scenes", "ranks": (1, 16), "device": "cpu"}
    return compare(Features(place / "features"), place / "results", **given | more)


@pytest.fixture(scope="module")
def comparison(place: Path) -> Comparison:
    return judged(place)


def test_by_its_own_tokens_the_model_finds_the_boxes_that_it_found_in_the_pictures(
    place: Path, comparison: Comparison
) -> None:
    scenes = list(read_grounding(place / "scenes"))
    boxes = np.array([scenes[row].bbox for row in Features(place / "features").split(SEED)["test"]])
    share = (boxes[:, 2:].prod(1) > 0).mean()  # a random model: some of its corners are crossed
    assert 0 < share < 1
    assert comparison.metrics["task"][X]["task_iou"] == pytest.approx(share, abs=1e-6)


def test_tables_agree_picture_by_picture(comparison: Comparison) -> None:
    task, images = comparison.metrics["task"], comparison.images
    assert set(task) == {X, SVD, "Sketch", *CONTROLS}
    for method in (SVD, "Sketch", *CONTROLS):
        own = images[images["method"] == method]
        row = comparison.storage.set_index(["method", "rank", "format"]).loc[(method, RANK, COMPUTED)]
        for name in ("task_iou", "task_change"):
            assert task[method][name] == row[name] == pytest.approx(own[name].mean(), abs=1e-12)
            error = own[name].std(ddof=1) / len(own) ** 0.5
            assert task[method][f"{name}_se"] == row[f"{name}_se"] == pytest.approx(error, abs=1e-12)
    assert (task[X]["task_change"], task[X]["task_change_se"]) == (0, 0)
    assert comparison.headline.keys() == {"cosine_SVD", "cosine_Sketch", "task_change_SVD"}  # no network was trained
    assert comparison.headline["task_change_SVD"] == task[SVD]["task_change"]
    assert "task_iou_se" in comparison.table


def test_what_is_judged_is_the_approximation(place: Path, comparison: Comparison) -> None:
    table = comparison.storage.set_index(["method", "rank", "format"])["task_change"]
    assert table[X, 16, "float16"] == 0
    assert table[SVD, 1, COMPUTED] < 0  # the boxes are the model's own
    again = judged(place, judged_formats=["int8"])
    asked = again.storage["format"].isin([COMPUTED, "int8"])
    pd.testing.assert_frame_equal(
        again.storage[asked], comparison.storage[asked].assign(on_task_front=again.storage["on_task_front"])
    )
    assert again.storage[~asked]["task_iou"].isna().all()


def test_positions_of_larger_pictures_are_interpolated(place: Path, comparison: Comparison) -> None:
    assert judged(place, judge_size=SIZE).metrics["task"] == comparison.metrics["task"]
    assert judged(place, judge_size=56).metrics["task"] != comparison.metrics["task"]


def test_pictures_are_drawn(comparison: Comparison, tmp_path: Path) -> None:
    draw_pictures(tmp_path, comparison)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    for kind in ("similarity", "task", "rate_distortion"):
        assert comparison.plot(kind).axes


def test_a_question_is_found_by_name_and_picture(place: Path, tmp_path: Path) -> None:
    features, scenes = Features(place / "features"), list(read_grounding(place / "scenes"))
    write_grounding(tmp_path / "turned.parquet", scenes[::-1])
    for images in (place / "scenes", tmp_path / "turned.parquet"):
        found = read_questions(features, range(60), images)
        assert found == {i: scene.question for i, scene in enumerate(scenes)}
    write_grounding(tmp_path / "fewer.parquet", scenes[:20])
    with pytest.raises(ValueError, match=r"fewer.parquet: has no picture 00020 as it is in .*features"):
        read_questions(features, range(60), tmp_path / "fewer.parquet")
    assert len(read_questions(features, range(20), tmp_path / "fewer.parquet")) == 20


def test_what_cannot_be_judged_is_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    wider = type(TINY)(**{name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"hidden": 64})
    GroundingModel(build_model(tokenizer, seed=1, sizes=wider), tokenizer).save(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"wider: reads tokens of width 64, .*features holds 32"):
        judged(place, judge=tmp_path / "wider")
    with pytest.raises(ValueError, match=r"give it as images \(--images\)"):
        judged(place, images=None)
    with pytest.raises(ValueError, match="layernorm cannot be undone"):
        features = Features(place / "features")
        open_judge(
            features, [0], Normalisation("layernorm"), place / "base", place / "scenes", None, torch.device("cpu")
        )
