import numpy as np
import pytest
import torch

from subspacelab.synthetic.grounding.grpo import counterfactual_boxes, entropy, kl_to_reference, policy_loss


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
