"""Pictures, the table, and what the tracker is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.unit.norms import zoo
from tests.unit.norms.test_analyze import run, write_tokenizer

from subspacelab.norms import plots as depth
from subspacelab.norms import plots as figures
from subspacelab.norms.comparison import (
    COLUMNS,
    compared_curves,
    comparison_rows,
    comparison_table,
    depth_curves,
    headline,
    outside_blocks,
    scale_curves,
    towers_of,
)
from subspacelab.norms.display import print_analysis
from subspacelab.norms.logging import flat_metrics, track_analysis, write_comparison
from subspacelab.norms.plots import LEGEND_LETTERS, columns_of, draw_comparison, draw_norm_scales, draw_pictures
from subspacelab.norms.results import Analysis
from subspacelab.plotting.figures import open_figure
from subspacelab.tracking import MemoryTracker
from subspacelab.tracking.protocol import require_name


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return run(zoo.write_model(tmp_path_factory.mktemp("zoo") / "kimi", zoo.kimi_vl()))


def test_curves_over_depth_take_every_norm_in_a_block(kimi: Analysis) -> None:
    curves = {curve.metric: curve for curve in depth_curves(kimi.norm_layers)}
    assert set(curves) == {
        "abs_mean/text.input_layernorm",
        "abs_mean/text.post_attention_layernorm",
        "abs_mean/text.self_attn.kv_a_layernorm",
        "abs_mean/vision.norm0",
        "abs_mean/vision.norm1",
    }
    by_name = {n.layer.name.layer: n.scale.abs_mean for n in kimi.norm_layers}
    curve = curves["abs_mean/text.self_attn.kv_a_layernorm"]
    assert curve.blocks == (0, 1, 2)
    assert curve.abs_means == tuple(
        by_name[f"language_model.model.layers.{i}.self_attn.kv_a_layernorm"] for i in range(3)
    )
    assert towers_of(kimi.norm_layers) == ["text", "vision", "projector"]
    (final,) = outside_blocks(kimi.norm_layers, "vision")
    assert final.layer.name.layer == "vision_tower.encoder.final_layernorm"


def test_the_tracker_gets_statistics_curves_and_pictures(kimi: Analysis, tmp_path: Path) -> None:
    tracker = MemoryTracker()
    track_analysis(kimi, draw_pictures(tmp_path, kimi), tracker)
    report = kimi.to_json()
    token = report["embedding_layers"]["language_model.model.embed_tokens.weight"]
    metrics = flat_metrics(kimi)
    assert metrics["norm_mean/language_model.model.embed_tokens.weight"] == token["norm_mean"]
    bias = report["norm_layers"]["multi_modal_projector.pre_norm"]["bias"]
    assert metrics["bias_abs_mean/multi_modal_projector.pre_norm"] == bias["abs_mean"]
    assert metrics["total_norm_layers"] == 7
    assert all(require_name(name, "metric") == name for name in metrics)
    logged = tracker.metrics
    assert set(metrics) <= set(logged)
    assert [step for step, _ in sorted(logged["abs_mean/vision.norm0"])] == [0, 1, 2]
    assert logged["kimi_token_norm"] == [(0, pytest.approx(token["norm_mean"], rel=1e-12))]
    assert {"kimi_patch_norm", "kimi_position_norm"} <= set(logged)
    assert headline({"kimi": report}) == {"kimi_token_norm": token["norm_mean"]}
    curves = scale_curves({"kimi": report})
    assert len(curves) == sum(entry["block"] is not None for entry in report["norm_layers"].values())
    assert sorted(tracker.artifacts) == ["pictures/embedding_norms.png", "pictures/norm_scales.png"]


def test_names_that_a_tracker_would_refuse_are_made_trackable(kimi: Analysis) -> None:
    tracker = MemoryTracker()
    track_analysis(replace(kimi, name="my model (é) #2"), (), tracker)
    assert "my model (_) #2_token_norm".translate(str.maketrans("()#", "___")) in tracker.metrics


def test_the_table_has_a_row_per_reported_layer(kimi: Analysis, tmp_path: Path) -> None:
    table = comparison_table([kimi, replace(kimi, name="again", all_norms=True)])
    assert tuple(table.columns) == COLUMNS
    assert [len(table[table["model"] == name]) for name in ("kimi", "again")] == [3 + 7, 3 + 18]
    assert table["abs_mean"].notna().all()
    assert table["norm_mean"].notna().sum() == 6
    for path in write_comparison(tmp_path, [kimi, kimi]):
        assert path.is_file()


def unknown(folder: Path, num_kinds: int, *, outside: int = 1) -> Analysis:
    import torch

    shapes: zoo.Shapes = {"embed_tokens.weight": (40, 8), "pos_emb.weight": (9, 8)}
    shapes |= {f"h.{i}.part{k}.norm.weight": (8,) for i in range(3) for k in range(num_kinds)}
    shapes |= {f"layers.{i}.ln_1.weight": (8,) for i in range(2)}
    shapes |= {f"end{k}.norm.weight": (8,) for k in range(outside)}
    model = zoo.Model({"model_type": "novel"}, shapes, torch.float32)
    return run(zoo.write_model(folder, model))


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of every picture that is drawn from here on."""
    drawn: list[Axes] = []

    @contextmanager
    def noted(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
        with open_figure(path, size) as figure:
            yield figure
            drawn.extend(figure.axes)

    monkeypatch.setattr(figures, "open_figure", noted)
    return drawn


@pytest.mark.parametrize("num_kinds", [1, 9, 27])
def test_no_two_kinds_of_norm_share_colour_and_dash(num_kinds: int, tmp_path: Path, axes: list[Axes]) -> None:
    draw_norm_scales(tmp_path / "x.png", unknown(tmp_path / "model", num_kinds))
    lines = [line for panel in axes for line in panel.get_lines()]
    styles = {(line.get_color(), str(line.get_linestyle())) for line in lines}
    assert len(axes) == 2
    assert len(lines) == len(styles) == num_kinds + 1


def test_more_kinds_than_styles_have_small_panels(
    tmp_path: Path, axes: list[Axes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figures.NUM_STYLES == 28
    monkeypatch.setattr(depth, "NUM_STYLES", 3)
    analysis = unknown(tmp_path / "model", 3)
    draw_norm_scales(tmp_path / "x.png", analysis)
    assert [len(panel.get_lines()) for panel in axes if panel.axison] == [1] * 4
    axes.clear()
    monkeypatch.setattr(figures, "MAX_PANELS", 2)
    draw_norm_scales(tmp_path / "x.png", analysis)
    assert len(axes) == 2


def test_like_stands_beside_like_in_table_picture_and_terminal(tmp_path: Path, axes: list[Axes]) -> None:
    import torch

    bert: zoo.Shapes = {"e.position_embeddings.weight": (9, 8), "e.token_type_embeddings.weight": (2, 8)}
    bert |= {"layers.0.ln_1.weight": (8,), "e.word_embeddings.weight": (40, 8)}
    model = zoo.Model({"model_type": "bert9"}, bert, torch.float32)
    both = [unknown(tmp_path / "a", 1), run(zoo.write_model(tmp_path / "b", model))]
    table = comparison_table(both)
    assert table["what"].tolist()[:5] == [f"{k} embedding" for k in ("token", "token", *["position"] * 2, "token type")]
    assert table["model"].tolist()[:5] == ["a", "b", "a", "b", "b"]
    draw_comparison(tmp_path / "x.png", both)
    titles = [panel.get_title() for panel in axes if panel.axison]
    kinds = ["token embedding", "position embedding", "token type embedding"]
    assert titles == [*kinds, "h.part0.norm", "layers.ln_1"]
    assert [len(panel.get_lines()) for panel in axes if panel.axison][-2:] == [1, 2]
    rows = {row[0]: row[1:] for row in comparison_rows(both)}
    assert rows["family"] == ["unknown", "unknown"]
    means = [float(a.embedding_layers[0].vectors.norms.mean()) for a in both]
    assert rows["token: mean norm"] == [f"{mean:.3g}" for mean in means]
    assert rows["token type: mean norm"][0] == rows["h.part0.norm: |scale|"][1] == "-"


def test_names_obey_nobody(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import torch

    shapes: zoo.Shapes = {"$x_{$embed[/b].weight": (9, 8), "layers.0.$\\frac{$ \x1b[31m\n.norm.weight": (8,)}
    analysis = run(zoo.write_model(tmp_path / "m", zoo.Model({"model_type": "[/x]"}, shapes, torch.float32)))
    analysis = replace(analysis, name="$\\frac{$[/x]\x1b[2J", model_name="$^{$", all_norms=True)
    draw_pictures(tmp_path, analysis)
    write_comparison(tmp_path, [analysis, analysis])
    print_analysis(analysis)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "layers.0.$\\frac{$ \\x1b[31m .norm: RMSNorm" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "vit", "molmo"])
def test_every_family_can_be_drawn(name: str, tmp_path: Path) -> None:
    analysis = run(zoo.write_model(tmp_path / name, zoo.TINY[name]()))
    for path in draw_pictures(tmp_path, analysis):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_histogram_shows_vectors_and_padding_in_their_colours(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    folder = zoo.write_model(tmp_path / "qwen2", zoo.qwen2(vocab=400))
    write_tokenizer(folder, 300)
    histogram, _ = draw_pictures(tmp_path, run(folder))
    pixels = np.asarray(Image.open(histogram).convert("RGB")).reshape(-1, 3)
    blue, orange = (np.abs(pixels - np.array(c)).sum(1) < 90 for c in ((0, 114, 178), (178, 107, 55)))
    assert min(blue.mean(), orange.mean()) > 0.02


def test_a_model_of_neither_norms_nor_embeddings_can_be_drawn_and_compared(tmp_path: Path) -> None:
    import torch

    bare = zoo.Model({}, {"a.weight": (3, 4)}, torch.float32)
    analysis = run(zoo.write_model(tmp_path / "bare", bare))
    assert analysis.to_json()["total_norm_layers"] == 0
    draw_pictures(tmp_path, analysis)
    write_comparison(tmp_path, [analysis, analysis])


@pytest.mark.parametrize(
    ("lengths", "columns"),
    [
        ([15, 24, 10], 3),
        ([15, 24, 26, 25, 16, 16, 10], 2),  # Gemma 3: three columns ran out of the picture
        ([40, 5, 40, 5], 1),
        ([100], 1),
        ([], 3),
    ],
)
def test_a_legend_is_as_wide_as_its_picture(lengths: list[int], columns: int) -> None:
    assert columns_of(lengths, LEGEND_LETTERS) == columns


def test_one_name_of_two_roles_is_never_compared(tmp_path: Path) -> None:
    from tests.unit.norms.test_family_table import build

    keys = {}
    for family in ("llama", "gemma2", "olmo2", "glm4"):
        build(family, {}).save_pretrained(tmp_path / family)
        keys[family] = {label for _, label in compared_curves(run(tmp_path / family).norm_layers)}
    read, written = "post_attention_layernorm", "post_attention_layernorm (of the output)"
    assert [(read in keys[f], written in keys[f]) for f in keys] == [
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    lines = [row[0] for row in comparison_rows([run(tmp_path / "llama"), run(tmp_path / "gemma2")])]
    assert {f"text.{read}: |scale|", f"text.{written}: |scale|"} <= set(lines)
