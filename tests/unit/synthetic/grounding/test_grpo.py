import numpy as np
import pytest
import torch
from tests.unit.synthetic.tiny import TINY

from subspacelab.synthetic.grounding.grpo import (
    counterfactual_boxes,
    entropy,
    iou_reward,
    kl_to_reference,
    pointing_reward,
    policy_loss,
    sample_boxes,
    score_boxes,
)
from subspacelab.synthetic.grounding.model import build_model, encode_prompts
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer, build_tokenizer


def test_counterfactual_boxes_change_one_coordinate() -> None:
    bins = torch.randint(0, 16, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    boxes = counterfactual_boxes(bins)
    for picture, sample, coordinate, bin in np.ndindex(2, 3, 4, 16):
        expected = bins[picture, sample].clone()
        expected[coordinate] = bin
        assert torch.equal(boxes[picture, sample, coordinate, bin], expected)


def test_policy_loss_against_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(2, 5, 4, 16, generator=generator, dtype=torch.float64).log_softmax(-1)
    counterfactuals = torch.rand(2, 5, 4, 16, generator=generator, dtype=torch.float64)
    rewards = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    p, q, r = log_probs.exp().numpy(), counterfactuals.numpy(), rewards.numpy()
    total = 0.0
    for picture, sample, coordinate, bin in np.ndindex(2, 5, 4, 16):
        advantage = (q[picture, sample, coordinate, bin] - r[picture].mean()) / r[picture].std(ddof=1)
        total -= p[picture, sample, coordinate, bin] * advantage / 10
    # float64 sums of 640 terms of order 1; no spread here is near the floor of 0.05.
    assert policy_loss(log_probs, counterfactuals, rewards).item() == pytest.approx(total, abs=1e-12)


def test_expected_gradient_is_exact_where_coordinates_are_independent() -> None:
    """Four coordinates of 16 bins with only 2 in play: all 16 boxes can be enumerated."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.full((4, 16), -torch.inf, dtype=torch.float64)
    logits[:, :2] = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    logits.requires_grad_(True)
    table = torch.rand(2, 2, 2, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cartesian_prod(*[torch.arange(2)] * 4)

    log_probs = logits.log_softmax(-1)
    p = log_probs[:, :2].exp()
    probabilities = torch.stack([p[i, boxes[:, i]] for i in range(4)]).prod(0)
    (exact,) = torch.autograd.grad((probabilities * table.flatten()).sum(), logits, retain_graph=True)

    # The expectation, over which box is drawn, of the gradient that each drawn box gives; a spread of rewards of 1.
    rewards = torch.tensor([[0.0, 2**0.5]], dtype=torch.float64)
    expected = torch.zeros_like(exact)
    for box, probability in zip(boxes, probabilities.detach(), strict=True):
        counterfactuals = torch.zeros(4, 16, dtype=torch.float64)
        counterfactuals[:, :2] = table[tuple(counterfactual_boxes(box[None, None])[0, 0, :, :2].unbind(-1))]
        both = (log_probs.expand(1, 2, 4, 16), counterfactuals.expand(1, 2, 4, 16))
        (gradient,) = torch.autograd.grad(-policy_loss(*both, rewards), logits, retain_graph=True)
        expected += probability * gradient
    # Two float64 sums over the same 16 boxes.
    torch.testing.assert_close(expected, exact, atol=1e-12, rtol=1e-12)


def test_loss_raises_the_better_bin_of_each_coordinate() -> None:
    logits = torch.zeros(1, 2, 4, 16, requires_grad=True)
    counterfactuals = torch.full((1, 2, 4, 16), 0.3)
    counterfactuals[..., 7] = 0.9
    policy_loss(logits.log_softmax(-1), counterfactuals, torch.tensor([[0.2, 0.4]])).backward()
    assert (logits.grad[..., 7] < 0).all()
    assert (logits.grad[..., :7] > 0).all()


def test_a_group_of_equal_rewards_does_not_drown_the_others() -> None:
    log_probs = torch.zeros(1, 4, 4, 16).log_softmax(-1)
    counterfactuals = torch.zeros(1, 4, 4, 16)
    counterfactuals[..., 0] = 1.0
    # The spread is 0; its floor of 0.05 bounds every advantage by 20, and 4 coordinates by 4 * 20 / 16.
    assert policy_loss(log_probs, counterfactuals, torch.zeros(1, 4)).abs() <= 4 * 20 / 16 + 1e-4  # float32


def test_kl_of_a_model_to_itself_is_zero_and_positive_otherwise() -> None:
    log_probs = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert kl_to_reference(log_probs, log_probs).item() == 0.0
    assert kl_to_reference(log_probs, log_probs.roll(1, -1)).item() > 0.0


def test_kl_and_entropy_against_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(7, 16, generator=generator, dtype=torch.float64).log_softmax(-1)
    q = torch.randn(7, 16, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    ).mean()
    # float64 sums of 16 terms.
    torch.testing.assert_close(kl_to_reference(p, q), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        entropy(p), torch.distributions.Categorical(logits=p).entropy().mean(), rtol=1e-12, atol=0
    )


WORD = torch.tensor([40.0, 60.0, 80.0, 20.0])


@pytest.mark.parametrize(
    ("box", "iou", "pointing"),
    [
        ([40.0, 60.0, 80.0, 20.0], 1.0, 1.0),
        # Moved right by half the word: intersection 40 * 20, union 120 * 20; the centre is on the word's edge.
        ([80.0, 60.0, 80.0, 20.0], 1 / 3, (1 / 3 + 0.0) / 2),
        # Twice as high around the same centre: half covered, perfectly pointed.
        ([40.0, 50.0, 80.0, 40.0], 0.5, (0.5 + 1.0) / 2),
        # A quarter of the width to the right: 60 * 20 of 100 * 20; the centre is half way to the edge.
        ([60.0, 60.0, 80.0, 20.0], 0.6, (0.6 + 0.5) / 2),
        # No height: nothing covered, and pointing does not count either.
        ([40.0, 70.0, 80.0, 0.0], 0.0, 0.0),
        # Far away.
        ([150.0, 150.0, 30.0, 30.0], 0.0, 0.0),
    ],
)
def test_rewards_by_hand(box: list[float], iou: float, pointing: float) -> None:
    boxes = torch.tensor([box])
    # float32 arithmetic on numbers below 256.
    assert iou_reward(boxes, WORD).item() == pytest.approx(iou, abs=1e-6)
    assert pointing_reward(boxes, WORD).item() == pytest.approx(pointing, abs=1e-6)


def test_pointing_outside_the_word_earns_at_most_half_its_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(500, 4, generator=generator) * 112
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    outside = ((centres < WORD[:2]) | (centres > WORD[:2] + WORD[2:])).any(-1)
    assert outside.any()
    torch.testing.assert_close(
        pointing_reward(boxes, WORD)[outside], iou_reward(boxes, WORD)[outside] / 2, atol=0, rtol=0
    )


PICTURES, GROUP = 3, 5


@pytest.fixture(scope="module")
def tokenizer() -> DemoTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: DemoTokenizer) -> torch.nn.Module:
    # A large initialiser, so that the 16 bins differ and a wrong mask or position would show.
    return build_model(tokenizer, seed=0, sizes=TINY, initializer_range=0.3).eval()


@pytest.fixture(scope="module")
def batch(tokenizer: DemoTokenizer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (PICTURES, 56, 56, 3), generator=generator, dtype=torch.uint8)
    return encode_prompts(tokenizer, images, [f"Where is the {c} word?" for c in ("red", "blue", "green")])


def plain_log_probs(model, tokenizer, batch, bins):
    """Every answer on its own behind a full copy of its prompt, through the model's ordinary forward."""
    first, rows = tokenizer.first_location, []
    patches = batch["pixel_values"].view(PICTURES, -1, batch["pixel_values"].shape[-1])
    for picture in range(PICTURES):
        for answer in bins[picture]:
            ids = torch.cat([batch["input_ids"][picture], answer + first])[None]
            out = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=patches[picture],
                image_grid_thw=batch["image_grid_thw"][picture : picture + 1],
                mm_token_type_ids=torch.nn.functional.pad(batch["mm_token_type_ids"][picture], (0, 4))[None],
            )
            rows.append(out.logits[0, -5:-1, first : first + 16].log_softmax(-1))
    return torch.stack(rows).view(*bins.shape, 16)


def test_log_probs_and_gradients_equal_those_of_ordinary_forwards(model, tokenizer, batch) -> None:
    rollout = sample_boxes(model, tokenizer, batch, GROUP, torch.Generator().manual_seed(2))
    plain = plain_log_probs(model, tokenizer, batch, rollout.bins)
    # float32, about ten layers of sums over up to 64 terms: rounding stays below 1e-5 of numbers of order 10.
    torch.testing.assert_close(rollout.log_probs, plain, atol=1e-5, rtol=1e-5)

    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    parameters = list(model.parameters())
    shared_gradients = torch.autograd.grad((rollout.log_probs * weights).sum(), parameters)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), parameters)
    for shared, naive in zip(shared_gradients, plain_gradients, strict=True):
        # The naive gradient sums 15 copies of the prompt in another order: 1e-4 of the tensor's largest entry.
        assert (shared - naive).abs().max() <= 1e-4 * naive.abs().max()


def test_scoring_the_sampled_boxes_repeats_their_log_probs(model, tokenizer, batch) -> None:
    sampled = sample_boxes(model, tokenizer, batch, GROUP, torch.Generator().manual_seed(4))
    scored = score_boxes(model, tokenizer, batch, sampled.bins)
    # The same operations on the same numbers.
    torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=0, rtol=0)
    assert torch.equal(scored.bins, sampled.bins)


def test_boxes_are_drawn_from_the_models_probabilities(model, tokenizer, batch) -> None:
    draws = 1000
    with torch.no_grad():
        rollout = sample_boxes(model, tokenizer, batch, draws, torch.Generator().manual_seed(5))
    first = torch.nn.functional.one_hot(rollout.bins[..., 0], 16).float().mean(1)
    # Five standard errors of a frequency over 1000 draws.
    assert (first - rollout.log_probs[:, 0, 0].exp()).abs().max() < 5 * 0.5 / draws**0.5


def test_temperature_divides_the_logits(model, tokenizer, batch) -> None:
    bins = torch.zeros(PICTURES, 2, 4, dtype=torch.long)
    with torch.no_grad():
        plain = score_boxes(model, tokenizer, batch, bins).log_probs
        cold = score_boxes(model, tokenizer, batch, bins, temperature=0.5).log_probs
        drawn = sample_boxes(model, tokenizer, batch, 2, torch.Generator().manual_seed(6), temperature=0.5)
        scored = score_boxes(model, tokenizer, batch, drawn.bins, temperature=0.5)
    # softmax(2 z) from softmax(z); float32 logarithms of numbers down to exp(-20).
    torch.testing.assert_close(cold, (2 * plain).log_softmax(-1), atol=1e-5, rtol=1e-5)
    # The same operations on the same numbers.
    torch.testing.assert_close(scored.log_probs, drawn.log_probs, atol=0, rtol=0)
