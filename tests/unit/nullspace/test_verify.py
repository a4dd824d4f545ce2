"""Verification end to end on tiny models, against norms that are taken here by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.language_models import write_tiny_lm
from tests.unit.nullspace.trainings import Killed, kill_at, train_tiny, write_adapter_of, write_base
from torch import Tensor

from subspacelab.data.text import read_texts
from subspacelab.models.causal_lm import load_causal_lm
from subspacelab.models.lora_model import open_adapter
from subspacelab.models.text_windows import text_windows
from subspacelab.nullspace.calibration import choose_tokens
from subspacelab.nullspace.config import VerifyAdapterConfig
from subspacelab.nullspace.display import print_verification
from subspacelab.nullspace.logging import track_verification
from subspacelab.nullspace.results import Verification
from subspacelab.nullspace.verification import verify_adapter
from subspacelab.tracking import MemoryTracker

METHODS = ("lora_null_v2", "lora_null_v2_projected", "lora_null_v1", "lora")
SEED = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of each method on one base; to be read only."""
    folder = write_base(tmp_path_factory.mktemp("verify"))
    for method in METHODS:
        write_adapter_of(folder, folder / method, method)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The same place, with `<method>-out/ft`, each trained."""
    for method in METHODS:
        train_tiny(place / method, place / f"{method}-out")
    return place


def settings_of(place: Path) -> VerifyAdapterConfig:
    return VerifyAdapterConfig(str(place / "text.txt"), calib_loader_size=7, max_activation_samples=50, seq_len=16)


def verified(place: Path, folder: str) -> Verification:
    return verify_adapter(place / folder, settings_of(place), seed=SEED)


def sampled(place: Path, model: torch.nn.Module, layer: torch.nn.Module) -> Tensor:
    """The chosen tokens' inputs of a layer, all windows in one pass."""
    windows = text_windows(place / "lm", read_texts(str(place / "text.txt"), split="test"), 7, 16, SEED)
    chosen = choose_tokens(windows.attention_mask, 50, SEED)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(input_ids=windows.input_ids)
    hook.remove()
    return seen[0][chosen].double()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_norms_are_those_of_the_live_model_and_of_the_frozen_base(trained: Path, method: str) -> None:
    found = {s.layer: s for s in verified(trained, f"{method}-out/ft").stats}
    live = open_adapter(trained / f"{method}-out" / "ft")
    base = load_causal_lm(trained / "lm", device=torch.device("cpu"))
    assert list(found) == live.meta["targets"]
    for name in ("model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        stats, f, w = found[name], live.factors()[name], base.get_submodule(name).weight.double()
        x = sampled(trained, live.model, live.model.get_base_model().get_submodule(name))
        old = sampled(trained, base, base.get_submodule(name))
        change = live.residual_weight(name).double() + f.A.double() @ f.B.double() - w
        assert stats.samples == 50
        assert stats.X_norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-5)
        assert stats.ABX_norm == pytest.approx(
            float((x @ f.B.double().T @ f.A.double().T).norm(dim=1).mean()), rel=1e-5
        )
        full = (x @ (w + change).T).norm(dim=1).mean()
        assert stats.FullOutput_norm == pytest.approx(float(full), rel=1e-5)
        base_ratio = (old @ change.T).norm(dim=1).mean() / old.norm(dim=1).mean()
        assert stats.base_DeltaX_ratio == pytest.approx(float(base_ratio), rel=1e-4)
        assert not torch.allclose(x, old), "trained layers before it move a layer's inputs"


@pytest.mark.slow
def test_what_was_built_has_learned_nothing_and_what_was_trained_has(trained: Path) -> None:
    init, now = verified(trained, "lora_null_v2"), verified(trained, "lora_null_v2-out/ft")
    assert (init.summary.trained, now.summary.trained) == (False, True)
    assert (init.summary.ABX_ratio, init.summary.A_weight_norm) == (0.0, 0.0)
    assert now.summary.ABX_ratio > 1e-3
    assert now.summary.B_weight_norm == init.summary.B_weight_norm
    for before, after in zip(init.stats, now.stats, strict=True):
        assert after.base_BX_ratio == before.base_BX_ratio
        assert before.base_BX_ratio == pytest.approx(before.BX_ratio, rel=1e-9)  # the sums are taken in another order
        assert after.bound_left is not None
        assert after.bound is not None
        assert 0 < after.bound_left <= after.bound
        assert before.BX_ratio_optimum <= before.BX_ratio * (1 + 1e-6)
        assert before.BX_ratio < before.BX_ratio_random


@pytest.mark.slow
def test_every_method_is_told_for_what_it_is(trained: Path) -> None:
    kinds = {}
    for method in METHODS:
        s = verified(trained, f"{method}-out/ft")
        kinds[method] = (s.summary.down_frozen, s.summary.starts_at_zero, s.stats[0].bound is None)
    assert kinds == {
        "lora_null_v2": (True, True, False),
        "lora_null_v2_projected": (True, False, False),
        "lora_null_v1": (False, False, True),
        "lora": (False, True, True),
    }


def test_a_random_b_is_no_better_than_random(place: Path) -> None:
    found = verified(place, "lora")
    # 14 layers of rank 4 in 24 and 40 dimensions.
    assert found.summary.times_better_than_random == pytest.approx(1, abs=0.35)
    assert "no better than a random B" in found.verdicts[0].text


def test_two_verifications_are_equal_and_another_seed_is_another(place: Path) -> None:
    first = verified(place, "lora_null_v2")
    assert verified(place, "lora_null_v2") == first
    assert verify_adapter(place / "lora_null_v2", settings_of(place), seed=4) != first


def test_a_text_shorter_than_a_window_is_padded_and_padding_counts_for_nothing(place: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcabdabe")
    settings = replace(settings_of(place), calib_dataset=str(tmp_path / "short.txt"), seq_len=64)
    found = verify_adapter(place / "lora_null_v2", settings, seed=SEED)
    exact = verify_adapter(place / "lora_null_v2", replace(settings, seq_len=found.summary.num_tokens), seed=SEED)
    assert found.summary.num_tokens < 12
    assert found.stats[0].samples == found.summary.num_tokens
    for padded, whole in zip(found.stats, exact.stats, strict=True):
        assert padded.X_norm == pytest.approx(whole.X_norm, rel=1e-4)
        assert padded.BX_ratio == pytest.approx(whole.BX_ratio, rel=1e-3)


@pytest.mark.parametrize("folder", ["lm", "nowhere"])
def test_a_folder_without_an_adapter_is_refused_in_one_line(place: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="no adapter here; make one") as e:
        verified(place, folder)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_the_output_of_a_training_is_told_from_its_adapter(trained: Path) -> None:
    with pytest.raises(ValueError, match="its adapter is .*lora_null_v2-out/ft"):
        verified(trained, "lora_null_v2-out")


@pytest.mark.slow
def test_an_unfinished_training_is_told_to_go_on(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_tiny(place / "lora", tmp_path / "out", log=kill_at(3))
    for folder in (tmp_path / "out", tmp_path / "out" / "ft"):
        with pytest.raises(ValueError, match="is not finished; run `nullspace train` again"):
            verify_adapter(folder, settings_of(place), seed=SEED)


def test_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    other = write_tiny_lm(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="other weights"):
        verify_adapter(place / "lora", settings_of(place), seed=SEED, base=str(other))


def test_the_report_has_a_block_per_layer_a_summary_and_a_reading_in_this_order(place: Path) -> None:
    found = verified(place, "lora_null_v1")
    console = Console(record=True, width=200)
    with console.capture() as shown:
        print_verification(found, console)
    text = shown.get()
    blocks = [text.index(f"{s.layer}\n") for s in found.stats]
    assert blocks == sorted(blocks)
    first = text[: blocks[1]]
    order = ["samples 50", "activations", "‖x‖", "‖Bx‖", "‖ABx‖", "‖W_res x‖", "null space", "‖BX‖/‖X‖", "‖ABx‖/‖x‖"]
    order += ["adapter's share of the output", "weights ‖B‖"]
    places = [first.index(part) for part in order]
    assert places == sorted(places)
    assert "orthonormal basis of B's rows" in first
    assert "no bound" in first
    assert blocks[-1] < text.index("Summary: lora_null_v1, as it was built, 14 layers") < text.index("Reading")
    assert all(v.text in text for v in found.verdicts)


def test_curves_run_over_the_blocks_by_kind_of_layer(place: Path) -> None:
    tracker = MemoryTracker()
    found = verified(place, "lora_null_v2")
    track_verification(found, "init", tracker)
    assert [step for step, _ in tracker.metrics["BX_ratio/q_proj"]] == [0, 1]
    values = {s.layer: s.BX_ratio for s in found.stats}
    assert tracker.metrics["BX_ratio/down_proj"][1] == (1, values["model.layers.1.mlp.down_proj"])
    assert "lora_null_v2_BX_ratio" not in tracker.metrics
    track_verification(found, "trained", tracker)
    assert tracker.metrics["lora_null_v2_BX_ratio"] == [(0, found.summary.BX_ratio)]
    assert tracker.headline == {}, "compare_stats says which methods' numbers are headlines"
