import numpy as np
import torch

from subspacelab.models.qwen_vl import QwenVLSizes
from subspacelab.synthetic.grounding.evaluation import box_iou, evaluate, mean_and_error
from subspacelab.synthetic.grounding.model import build_model
from subspacelab.synthetic.grounding.pool import render_scenes
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer


def test_iou_of_known_boxes() -> None:
    a = torch.tensor([0.0, 0.0, 10.0, 10.0])
    others = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 10.0, 10.0], [20.0, 0.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0]])
    torch.testing.assert_close(box_iou(a, others), torch.tensor([1.0, 1 / 3, 0.0, 0.0]))


def test_mean_and_standard_error() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    mean, error = mean_and_error(torch.from_numpy(values))
    np.testing.assert_allclose([mean, error], [values.mean(), values.std(ddof=1) / np.sqrt(50)], rtol=1e-12)


def test_batches_do_not_change_the_answer_and_the_mode_is_put_back() -> None:
    tokenizer = build_tokenizer()
    sizes = QwenVLSizes(16, 2, 2, 16, 32, 2, 2, 32)
    model = build_model(tokenizer, seed=0, sizes=sizes, initializer_range=0.1).train()
    scenes = render_scenes(0, 5, 112, label="test")
    whole, parts = (evaluate(model, tokenizer, scenes, batch_size=n) for n in (5, 2))
    assert torch.equal(whole.boxes, parts.boxes)
    assert whole.num_scenes == 5
    assert model.training
