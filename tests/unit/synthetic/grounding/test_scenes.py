from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from subspacelab.data.grounding import read_grounding
from subspacelab.synthetic.grounding.scenes import COLOURS, SPLITS, SceneSet, scene, split_seed


def test_a_scene_depends_on_its_seed_and_index_alone() -> None:
    first = scene(3, 7, 112)
    scene(3, 8, 112)
    again = scene(3, 7, 112)
    assert np.array_equal(first.image, again.image)
    assert (first.question, first.answer, first.bbox) == (again.question, again.answer, again.bbox)
    assert not np.array_equal(first.image, scene(4, 7, 112).image)


@pytest.mark.parametrize("index", range(6))
def test_the_same_scene_at_both_sizes(index: int) -> None:
    small, large = scene(0, index, 224), scene(0, index, 448)
    assert (small.question, small.answer) == (large.question, large.answer)
    # Fonts come in whole pixels, so sides differ by rounding; a shrunken 448 picture shows the same things.
    assert np.abs(np.array(small.bbox) * 2 - np.array(large.bbox)).max() < 16
    shrunk = large.image.reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("index", range(20))
def test_the_box_holds_the_word_and_lies_inside(index: int) -> None:
    drawn = scene(1, index, 224)
    x, y, width, height = (int(v) for v in drawn.bbox)
    assert x >= 0
    assert y >= 0
    assert x + width <= 224
    assert y + height <= 224
    assert drawn.colour in drawn.question
    like_ink = np.abs(drawn.image.astype(int) - np.array(COLOURS[drawn.colour])).max(-1) <= 21
    inside = like_ink[y : y + height, x : x + width]
    # Letters fill a tenth to a half of their box; of the background next to nothing has the word's colour.
    assert inside.mean() > 0.08
    assert inside.mean() > 5 * like_ink.sum() / like_ink.size - 5 * inside.sum() / like_ink.size


def test_every_split_of_every_seed_is_another_set() -> None:
    seeds = {split_seed(seed, split) for seed in range(10) for split in SPLITS}
    assert len(seeds) == 10 * len(SPLITS)


def test_written_scenes_read_back_and_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        SceneSet(rows=3, size=112, seed=5).save(tmp_path / name)
    assert (tmp_path / "a/scenes.parquet").read_bytes() == (tmp_path / "b/scenes.parquet").read_bytes()
    rows = list(read_grounding(tmp_path / "a"))
    assert len(rows) == 3
    drawn = scene(split_seed(5, "rows"), 2, 112)
    assert (rows[2].question, rows[2].answers, rows[2].bbox) == (drawn.question, (drawn.answer,), drawn.bbox)
    assert rows[2].image().size == (112, 112)
    # JPEG at quality 95 without chroma subsampling: a few grey levels on noise.
    assert np.abs(np.asarray(rows[2].image()).astype(int) - drawn.image).mean() < 6


def test_a_bar_is_told_of_every_scene(tmp_path: Path) -> None:
    opened, done = [], []

    @contextmanager
    def progress(description: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        opened.append((description, total, unit))
        yield done.append

    SceneSet(rows=3, size=56, seed=5).save(tmp_path, progress)
    assert opened == [("draw scenes", 3, "scenes")]
    assert done == [1, 1, 1]
