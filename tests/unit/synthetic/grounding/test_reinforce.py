import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.synthetic.tiny import TINY
from transformers import AutoTokenizer

from subspacelab.models.qwen_vl import load_qwen_vl, save_qwen_vl
from subspacelab.synthetic.grounding.model import build_model
from subspacelab.synthetic.grounding.reinforce import RlTraining, read_training_path, train_rl, write_training_path
from subspacelab.synthetic.grounding.tokenizer import build_tokenizer, write_tokenizer

SHORT = RlTraining(
    steps=4, pictures=3, group=4, size=112, learning_rate=1e-3, held_out=6, held_out_every=2, snapshot_every=2
)


class Curves(dict[str, list[float]]):
    """Collects what is logged; stops the run at a step if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.setdefault(name, []).append(value)
        if step == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints") / "base", build_tokenizer()
    save_qwen_vl(build_model(tokenizer, seed=0, sizes=TINY, initializer_range=0.2), folder)
    write_tokenizer(tokenizer, folder)
    return folder


def train(base: Path, output: Path, curves: Curves | None = None, seed: int = 7) -> dict[str, torch.Tensor]:
    work = output.with_name(f"{output.name}-work")
    log = Curves() if curves is None else curves
    train_rl(base, work, training=SHORT, stage="rl_stage1", seed=seed, log=log).save(output)
    return weights(output)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_result_is_a_folder_like_the_base_with_every_weight_trained(base: Path, tmp_path: Path) -> None:
    curves = Curves()
    trained, start = train(base, tmp_path / "rl", curves), weights(base)
    assert {k: (v.shape, v.dtype) for k, v in trained.items()} == {k: (v.shape, v.dtype) for k, v in start.items()}
    assert {p.name for p in (tmp_path / "rl").iterdir()} == {p.name for p in base.iterdir()}
    assert not [k for k in trained if k.endswith("proj.weight") and torch.equal(trained[k], start[k])]
    assert load_qwen_vl(tmp_path / "rl").config.vision_config.hidden_size == TINY.vision_hidden
    assert len(AutoTokenizer.from_pretrained(tmp_path / "rl")) == build_tokenizer().vocab_size
    assert {
        "reward_mean",
        "reward_std",
        "kl",
        "entropy",
        "gradient_norm",
        "held_out_iou",
        "held_out_gain",
    } <= curves.keys()


@pytest.mark.slow
def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_differs(base: Path, tmp_path: Path) -> None:
    first = train(base, tmp_path / "first")
    assert same(first, train(base, tmp_path / "second"))
    assert not same(first, train(base, tmp_path / "third", seed=8))


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    whole = train(base, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "broken", Curves(stop_at=4))
    assert not (tmp_path / "broken").exists()
    assert (tmp_path / "broken-work" / "snapshot.safetensors").is_file()
    continued = Curves()
    assert same(whole, train(base, tmp_path / "broken", continued))
    assert len(continued["reward_mean"]) == 1  # only the last two of the four steps ran again


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="reward: must be 'iou' or 'pointing', got 'speed'"):
        RlTraining(reward="speed")  # type: ignore[arg-type]


def test_the_path_holds_the_checkpoints_on_the_way_and_how_far_they_are(base: Path, tmp_path: Path) -> None:
    plain = train(base, tmp_path / "plain")
    path, work = tmp_path / "path", tmp_path / "work"
    rl = {"training": SHORT, "stage": "rl_stage1", "seed": 7, "path": work / "path"}
    with pytest.raises(KeyboardInterrupt):
        train_rl(base, work, **rl, log=Curves(stop_at=2))
    train_rl(base, work, **rl).save(tmp_path / "kept")
    assert same(plain, weights(tmp_path / "kept"))  # what is kept on the way changes nothing
    write_training_path(path, work / "path", SHORT.passed())
    passed = read_training_path(path)
    assert [(p.step, p.of_steps) for p in passed] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert 0 < passed[0].of_rates < passed[1].of_rates < passed[2].of_rates < 1
    stages = [weights(path / f"step{p.step}") for p in passed]
    key = next(k for k in plain if k.endswith("up_proj.weight"))
    moved = [(w[key] - weights(base)[key]).norm() for w in [*stages, plain]]
    assert all(a != b for a, b in itertools.pairwise(moved))
    write_training_path(path, work, [])
    assert read_training_path(path) == []
    assert [p.name for p in path.iterdir()] == ["path.json"]
