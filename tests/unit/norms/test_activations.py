"""Massive activations: planted ones are found, every figure is numpy's on the stream, and nothing else is called so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from tests.language_models import tiny_model, write_text, write_tiny_lm
from tests.unit.checkpoints.refusal import refusal
from tests.unit.norms.test_family_table import build
from torch import Tensor

from subspacelab.cli import main
from subspacelab.core.errors import SettingError
from subspacelab.models.residual_stream import run_trunk, watched_stream
from subspacelab.norms.activations import massive
from subspacelab.norms.logging import track_massive
from subspacelab.norms.results import FILES, Massive
from subspacelab.tracking import MemoryTracker


def open_pipe(planted: dict[tuple[int, int], float], seed: int = 0) -> torch.nn.Module:
    """A model whose blocks add nothing, so that the stream is the embedding; (token, dimension) -> activation."""
    model = tiny_model(seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        for (token, dim), value in planted.items():
            model.get_input_embeddings().weight[token, dim] = value
    return model


IDS = torch.tensor([[7, 3, 4, 5], [3, 4, 6, 7], [5, 4, 3, 6]])


def test_planted_activations_are_found_where_they_are() -> None:
    found = massive(open_pipe({(7, 5): -900.0, (6, 9): 2000.0}), IDS, num_dims=2, batch_size=2)
    assert found.metrics["massive_dims"] == [5, 9]
    assert found.metrics["massive_layers"] == [0, 2]
    assert found.metrics["massive_activations"] == 3 * 4  # of each token two, in each of three layers
    assert found.metrics["share_at_first_token"] == 1 / 4
    layers = found.layers
    assert layers["layer"].tolist() == [0, 1, 2]
    assert (layers["dim"] == 9).all()
    assert (layers["token"] == "6").all()
    assert layers["largest"].tolist() == [2000.0] * 3
    assert [(row.kind, row.dim) for row in found.dims.drop_duplicates("dim").itertuples()][:2] == [
        ("massive", 9),
        ("massive", 5),
    ]
    assert found.dims.loc[found.dims["kind"] == "random", "massive"].sum() == 0
    assert (
        "2 dimensions (5, 9) with massive activations in layers 0 to 2, 25 % of them at the first token"
        in found.summary
    )


@pytest.mark.parametrize(("planted", "why"), [(99.0, "below 100"), (150.0, "below 1000 medians")])
def test_a_large_activation_is_not_massive_by_one_measure_alone(planted: float, why: str) -> None:
    model = open_pipe({(7, 5): planted})
    if planted > 100:
        with torch.no_grad():
            model.get_input_embeddings().weight[:] *= 3
            model.get_input_embeddings().weight[7, 5] = planted
    else:
        with torch.no_grad():
            model.get_input_embeddings().weight[:] *= 1e-3
            model.get_input_embeddings().weight[7, 5] = planted
    found = massive(model, IDS, num_dims=3)
    assert found.metrics["massive_dims"] == [], why
    assert found.metrics["massive_layers"] is None
    assert found.dims["kind"].iloc[0] == "largest"
    assert found.dims["dim"].iloc[0] == 5
    assert found.summary.startswith("no massive activation: the largest is")


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_figure_is_numpys_on_the_stream(batch_size: int) -> None:
    model = tiny_model(seed=1)
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 5] = 3000.0
    stream: dict[int, Tensor] = {}
    with watched_stream(model, lambda layer, x: stream.update({layer: x.clone()})):
        run_trunk(model, IDS, torch.ones_like(IDS, dtype=torch.bool))
    found = massive(model, IDS, num_dims=4, batch_size=batch_size)
    for layer, x in stream.items():
        a = np.abs(x.numpy())  # [windows, length, dim]
        # torch's median of an even number is the lower of the two in the middle
        medians = np.sort(a.reshape(len(a), -1), axis=1)[:, (a[0].size - 1) // 2]
        is_massive = (a > 100) & (a > 1000 * medians[:, None, None])
        ratio = (a / medians[:, None, None]).max((0, 1))
        row = found.layers.iloc[layer]
        assert row["massive"] == is_massive.sum()
        assert row["first"] == is_massive[:, 0].sum()
        assert row["massive_dims"] == is_massive.any((0, 1)).sum()
        assert row["dim"] == ratio.argmax()
        assert row["ratio"] == pytest.approx(ratio.max(), rel=1e-6)
        assert row["largest"] == pytest.approx(a[..., ratio.argmax()].max(), rel=1e-6)
        assert row["typical_largest"] == pytest.approx(np.sort(a.max((0, 1)))[(a.shape[-1] - 1) // 2], rel=1e-6)
        of_layer = found.dims[found.dims["layer"] == layer].set_index("dim")
        for dim in of_layer.index:
            assert of_layer.loc[dim, "largest"] == pytest.approx(a[..., dim].max(), rel=1e-6)
            assert of_layer.loc[dim, "massive"] == is_massive[..., dim].sum()


def test_scales_are_those_that_multiply_with_their_place_among_all() -> None:
    model = build("gemma3_text", {})
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.copy_(torch.linspace(-0.5, 0.5, 32))
    scales = massive(model, IDS, num_dims=3).scales
    assert set(scales["norm"]) == {
        *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        "norm",  # the final one; q_norm and k_norm are not of the stream
    }
    rows = scales[(scales["norm"] == "input_layernorm") & (scales["block"] == 1)]
    expected = 1 + np.linspace(-0.5, 0.5, 32)
    assert rows["scale"].tolist() == pytest.approx(expected[rows["dim"]].tolist())
    assert rows["rank"].tolist() == pytest.approx((rows["dim"] / 31).tolist())
    equal = scales[(scales["norm"] == "input_layernorm") & (scales["block"] == 0)]
    assert equal["rank"].tolist() == [0.5] * 6  # all alike: none is above or below


def test_a_model_in_training_is_measured_without_its_dropout_and_left_in_training() -> None:
    model = build("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5}).train()
    a, b = (massive(model, IDS, num_dims=2).layers for _ in range(2))
    assert_frame_equal(a, b)
    assert model.training


def test_random_dimensions_are_others_drawn_by_the_seed() -> None:
    model = open_pipe({(7, 5): 900.0})
    a, b = (massive(model, IDS, num_dims=4, seed=1) for _ in range(2))
    assert_frame_equal(a.dims, b.dims)
    kinds = a.dims.drop_duplicates("dim").groupby("kind")["dim"].apply(set)
    assert len(kinds["random"]) == 4
    assert not kinds["random"] & (kinds["massive"] | kinds["largest"])
    other = massive(model, IDS, num_dims=4, seed=2).dims
    assert set(other.loc[other["kind"] == "random", "dim"]) != kinds["random"]
    everything = massive(model, IDS, num_dims=1000)
    assert set(everything.dims["dim"]) == set(range(model.config.hidden_size))
    assert "random" not in set(everything.dims["kind"])


def test_what_cannot_be_measured_is_one_line() -> None:
    model = open_pipe({(7, 5): float("nan")})
    assert refusal(massive, model, IDS).startswith("NaN or infinity in the residual stream of layer 0")
    with pytest.raises(SettingError, match="num_dims=0"):
        massive(model, IDS, num_dims=0)
    with pytest.raises(SettingError, match="of a live model the tokenizer is not known"):
        massive(model, "text.txt")
    for ids in (torch.ones(2, 3), torch.ones(3, dtype=torch.long), IDS > 0, IDS[:0], IDS - 9, IDS * 10**6):
        with pytest.raises(SettingError, match="token ids"):
            massive(tiny_model(), ids)
    with pytest.raises(SettingError, match="windows of 70 tokens, the model has 64 positions"):
        massive(build("gpt2", {}), torch.ones(1, 70, dtype=torch.long))
    assert (
        refusal(massive, torch.nn.Linear(2, 2), IDS) == "Linear: no model of transformers; give a causal language model"
    )
    assert "has no folder" in refusal(massive, {"a": torch.ones(2)}, IDS)


def test_all_zero_and_half_precision_are_models_too() -> None:
    model = tiny_model()
    assert massive(model.bfloat16(), IDS).layers["ratio"].notna().all()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert massive(model, IDS).metrics["largest_ratio"] == 0


def test_a_tracker_gets_figures_curves_tables_and_the_picture(tmp_path: Path) -> None:
    found, tracker = massive(open_pipe({(7, 5): 900.0}), IDS, num_dims=2), MemoryTracker()
    track_massive(found, [tmp_path / "massive.png"], tracker)
    assert tracker.metrics["massive/num_massive_dims"] == [(0, 1.0)]
    assert tracker.metrics["massive/ratio"] == list(enumerate(found.layers["ratio"]))
    assert tracker.metrics["massive/rank_input_layernorm_random"][0][1] == pytest.approx(
        found.scales.query("norm == 'input_layernorm' and kind == 'random'")["rank"].mean()
    )
    assert set(tracker.tables) == {"layers", "dims", "scales"}
    assert tracker.artifacts == ["pictures/massive.png"]
    assert tracker.tags["summary"] == found.summary


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_lm(tmp_path / "lm")
    write_text(tmp_path / "text.txt")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["norms", "massive", *arguments, "--no-track"])
    return int(e.value.code or 0)


def test_the_command_writes_tables_and_a_picture_that_load_again(folder: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--model", "lm", "--text", "text.txt", "--num-windows", "5", "--seq-len", "8", "--num-dims", "2"]
    assert run(*flags, "--output-dir", "out") == 0
    said = capsys.readouterr().out
    assert "Residual stream" in said
    loaded = Massive.load(folder / "out")
    assert " ".join(loaded.summary.split()) in " ".join(said.split())
    again = massive(folder / "lm", folder / "text.txt", num_windows=5, seq_len=8, num_dims=2)
    for name in ("layers", "dims", "scales"):
        assert_frame_equal(getattr(loaded, name), getattr(again, name))
    assert loaded.metrics == again.metrics
    before = {p.name: p.read_bytes() for p in (folder / "out").iterdir()}
    assert set(FILES) | {"massive.png"} < set(before)
    assert run(*flags, "--output-dir", "out") == 0  # the same job again: the same bytes
    assert {p.name: p.read_bytes() for p in (folder / "out").iterdir()} == before
    assert run(*flags, "--seed", "1", "--output-dir", "out") == 1
    assert "massive.json: no measurement here" in refusal(Massive.load, folder)
    (folder / "out" / "layers.csv").write_text("")
    assert "layers.csv" in refusal(Massive.load, folder / "out")
    loaded.save(folder / "copy")
    assert_frame_equal(pd.read_csv(folder / "copy" / "dims.csv"), pd.read_csv(folder / "out" / "dims.csv"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--text", "nothing.txt"), "nothing.txt: no such text"),
        (("--text", "text.txt", "--seq-len", "5000"), "more than the model has positions"),
        (("--text", "text.txt", "--num-windows", "0"), "num_windows"),
        (("--text", "text.txt", "--output-dir", "lm/out"), "the input"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture, flags: tuple[str, ...], said: str
) -> None:
    before = sorted(p for p in folder.rglob("*"))
    output = () if "--output-dir" in flags else ("--output-dir", "out")
    assert run("--model", "lm", *flags, *output) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [p for p in sorted(folder.rglob("*")) if p.is_file()] == [p for p in before if p.is_file()]
