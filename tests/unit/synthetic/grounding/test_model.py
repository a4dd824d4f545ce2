import pytest
import torch
from tests.unit.synthetic.tiny import TINY
from torch import Tensor

from subspacelab.data.boxes import NUM_BINS, bins_box
from subspacelab.synthetic.grounding.model import build_model, decode_boxes, encode_prompts
from subspacelab.synthetic.grounding.tokenizer import DemoTokenizer, build_tokenizer


def _prompted() -> tuple[DemoTokenizer, torch.nn.Module, dict[str, Tensor]]:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0, sizes=TINY, initializer_range=0.1).eval()
    images = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return tokenizer, model, encode_prompts(tokenizer, images, ["Where is the red word?"] * 3)


def test_greedy_equals_generate_of_transformers() -> None:
    tokenizer, model, batch = _prompted()
    ours = decode_boxes(model, tokenizer, batch, size=112)
    first = tokenizer.first_location
    locations = list(range(first, first + NUM_BINS))
    inputs = {k: v for k, v in batch.items() if k != "position_ids"}
    theirs = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, prefix_allowed_tokens_fn=lambda *_: locations, eos_token_id=None
    )
    assert torch.equal(theirs[:, batch["input_ids"].shape[1] :] - first, ours.bins)
    assert torch.equal(ours.boxes, bins_box(ours.bins, 112))


def test_samples_are_seeded_and_have_their_log_probs() -> None:
    tokenizer, model, batch = _prompted()
    drawn, again = (
        decode_boxes(model, tokenizer, batch, size=112, temperature=1.0, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert drawn.bins.shape == (3, 4)
    assert torch.equal(drawn.bins, again.bins)
    # Recompute everything without a cache, in one long pass.
    ids = batch["input_ids"]
    whole = torch.cat([ids, drawn.bins + tokenizer.first_location], dim=1)
    with torch.no_grad():
        logits = model(
            input_ids=whole,
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            mm_token_type_ids=torch.cat([batch["mm_token_type_ids"], torch.zeros(3, 4, dtype=torch.int)], 1),
            attention_mask=torch.ones_like(whole),
        ).logits
    first = tokenizer.first_location
    own = logits[:, ids.shape[1] - 1 : -1, first : first + NUM_BINS].log_softmax(-1)
    expected = own.gather(-1, drawn.bins[..., None])[..., 0]
    # float32 sums in another order over two blocks.
    torch.testing.assert_close(drawn.log_probs, expected, rtol=0, atol=1e-5)


def test_positions_are_those_of_transformers() -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0, sizes=TINY)
    batch = encode_prompts(tokenizer, torch.zeros(2, 112, 112, 3, dtype=torch.uint8), ["Where is the red word?"] * 2)
    theirs, _ = model.model.get_rope_index(
        batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"], image_grid_thw=batch["image_grid_thw"]
    )
    assert torch.equal(batch["position_ids"], theirs)


def test_questions_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"token counts \[\d+, \d+\] differ"):
        encode_prompts(build_tokenizer(), torch.zeros(2, 56, 56, 3, dtype=torch.uint8), ["a b", "a b c d"])
