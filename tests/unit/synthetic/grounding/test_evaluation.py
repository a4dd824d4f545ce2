"""The figures of a checkpoint: each against a second way to get it."""

import json

import numpy as np
import pytest
import torch
from tests.unit.synthetic.tiny import TINY

from subspacelab.core.callbacks import no_progress
from subspacelab.data.boxes import box_iou
from subspacelab.models.qwen_vl import QwenVLSizes, save_qwen_vl
from subspacelab.synthetic.display import print_checkpoint
from subspacelab.synthetic.grounding.evaluation import (
    CheckpointEvaluation,
    Evaluation,
    best_constant_box,
    evaluate,
    evaluate_checkpoint,
    mean_and_error,
    truncation_cosine,
)
from subspacelab.synthetic.grounding.model import build_model
from subspacelab.synthetic.grounding.plots import draw_boxes, draw_checkpoint
from subspacelab.synthetic.grounding.scenes import render_scenes, scene
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer, write_tokenizer


def test_the_best_constant_box_beats_every_box_of_the_set_and_their_mean():
    boxes = torch.tensor([scene(1, i, 64).bbox for i in range(60)])
    best = box_iou(best_constant_box(boxes), boxes).mean()
    assert best >= box_iou(boxes[:, None], boxes[None]).mean(1).max()
    assert best >= box_iou(boxes.mean(0), boxes).mean()


def test_the_best_constant_box_of_equal_boxes_is_that_box():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 15.0]]).repeat(5, 1)
    assert torch.allclose(best_constant_box(boxes), boxes[0])


def test_truncation_cosine_is_that_of_the_truncated_svd():
    x = np.random.default_rng(0).standard_normal((3, 12, 9))
    for rank in (1, 4, 9):
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        near = (u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]
        norms = np.linalg.norm(x, axis=(1, 2)) * np.linalg.norm(near, axis=(1, 2))
        wanted = (x * near).sum((1, 2)) / norms
        assert np.allclose(truncation_cosine(torch.from_numpy(x), rank), wanted, rtol=1e-12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    tokenizer = build_tokenizer()
    save_qwen_vl(build_model(tokenizer, seed=0, sizes=TINY), folder)
    write_tokenizer(tokenizer, folder)
    return folder


@pytest.mark.slow
def test_a_report_is_repeatable_and_its_gain_over_itself_is_zero(checkpoint, tmp_path):
    written = []
    for run in ("a", "b"):
        evaluation = evaluate_checkpoint(checkpoint, seed=1, num_scenes=4, before=checkpoint)
        evaluation.save(tmp_path / run)
        picture = draw_checkpoint(tmp_path / run / "boxes.png", evaluation)
        written.append(((tmp_path / run / "base.json").read_bytes(), picture.read_bytes()))
    figures = evaluation.metrics
    assert written[0] == written[1]
    assert json.loads(written[0][0]).keys() == figures.keys()
    assert (figures["gain"], figures["gain_se"], figures["num_scenes"]) == (0.0, 0.0, 4)
    assert 0 <= figures["mean_iou"] <= 1
    assert figures["svd_cosine_rank64_median"] <= figures["svd_cosine_rank128_median"] <= 1 + 1e-12


def test_what_is_printed_says_what_the_errors_are_over(capsys):
    figures = {"num_scenes": 12, "gain": 0.05, "gain_se": 0.01}
    figures |= {f"{name}{part}": 0.25 for name in ("mean_iou", "sampled_iou", "constant_iou") for part in ("", "_se")}
    found = Evaluation(0.25, 0.25, 0, torch.zeros(0, 4), torch.zeros(0))
    print_checkpoint(CheckpointEvaluation("rl_stage1", figures, [], found))
    said = " ".join(capsys.readouterr().out.split())
    assert "rl_stage1 on 12 scenes" in said
    assert "greedy 0.250 0.250 +0.050 0.010" in said
    assert "standard error over the scenes, of this one training" in said


def test_boxes_are_drawn_for_each_scene_with_its_iou():
    scenes = [scene(1, i, 64) for i in range(3)]
    figure = draw_boxes(scenes, torch.tensor([s.bbox for s in scenes]), torch.ones(3))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == [f"{s.question}\nIoU 1.00" for s in scenes]


def test_mean_and_standard_error() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    mean, error = mean_and_error(torch.from_numpy(values))
    np.testing.assert_allclose([mean, error], [values.mean(), values.std(ddof=1) / np.sqrt(50)], rtol=1e-12)


def test_batches_do_not_change_the_answer_and_the_mode_is_put_back() -> None:
    tokenizer = build_tokenizer()
    sizes = QwenVLSizes(16, 2, 2, 16, 32, 2, 2, 32)
    model = build_model(tokenizer, seed=0, sizes=sizes, initializer_range=0.1).train()
    scenes = render_scenes(0, 5, 112, label="test", progress=no_progress)
    whole, parts = (evaluate(model, tokenizer, scenes, batch_size=n) for n in (5, 2))
    assert torch.equal(whole.boxes, parts.boxes)
    assert whole.num_scenes == 5
    assert model.training
