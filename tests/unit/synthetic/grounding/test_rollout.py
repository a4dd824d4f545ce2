import pytest
import torch
from tests.unit.synthetic.tiny import TINY

from subspacelab.synthetic.grounding.grpo import sample_boxes, score_boxes
from subspacelab.synthetic.grounding.model import build_model, encode_prompts
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer, build_tokenizer

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
    draws = 4000
    with torch.no_grad():
        rollout = sample_boxes(model, tokenizer, batch, draws, torch.Generator().manual_seed(5))
    first = torch.nn.functional.one_hot(rollout.bins[..., 0], 16).float().mean(1)
    # Five standard errors of a frequency over 4000 draws.
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
