"""`subspacelab norms analyze` as a person types it: on folders, on several, and on a hub that is only a server here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.unit.checkpoints.range_hub import COMMIT, REPO, point_client_at, serving
from tests.unit.norms import zoo

from subspacelab.cli import main
from subspacelab.core.files import read_json
from subspacelab.core.ownership import MANIFEST
from subspacelab.norms.commands import unique


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["norms", "analyze", *arguments, "--no-track"])
    return int(e.value.code or 0)


def test_one_model_gives_one_report_and_two_pictures(place: Path, capsys: pytest.CaptureFixture) -> None:
    zoo.write_model(place / "kimi", zoo.kimi_vl())
    assert run("--model", "kimi", "--device", "cpu") == 0
    report = read_json(place / "embedding_analysis.json")
    assert (report["model_name"], report["model_type"]) == ("kimi", "kimi_vl")
    assert (report["total_embedding_layers"], report["total_norm_layers"]) == (3, 7)
    found = {path.name for path in (place / "embedding_analysis").iterdir()}
    assert found == {"embedding_norms.png", "norm_scales.png"}
    said = capsys.readouterr().out
    order = ["family: Kimi-VL", "Embedding layers: 3", "vocabulary", "norms ", "weights ", "features", "positions"]
    order += ["Norm layers: 7 of 18", "input_layernorm: RMSNorm [24]", "multi_modal_projector.pre_norm: LayerNorm"]
    assert sorted(order, key=said.index) == order
    assert "warning" not in said


def test_pictures_go_into_nobodys_folder_that_was_not_named(place: Path, capsys: pytest.CaptureFixture) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    (place / "a").mkdir()
    (place / "a" / "mine.txt").write_text("stays")
    assert run("--model", "vit", "--output", "a.json") == 1
    assert "error: a: exists, and was not made by this command; give a folder" in capsys.readouterr().err
    assert [path.name for path in (place / "a").iterdir()] == ["mine.txt"]
    assert run("--model", "vit", "--output", "a.json", "--output-dir", "a") == 0
    assert (place / "a" / "mine.txt").read_text() == "stays"


def test_all_norms_and_the_output_are_where_they_are_asked_for(place: Path) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    assert run("--model", "vit", "--all-norms", "--output", "out/report.json", "--output-dir", "pictures") == 0
    assert read_json(place / "out" / "report.json")["total_norm_layers"] == 7
    drawn = {"embedding_norms.png", "norm_scales.png"}
    assert {path.name for path in (place / "pictures").iterdir()} == {*drawn, MANIFEST}


@pytest.mark.slow
def test_several_models_give_a_list_in_order_a_table_and_a_picture(place: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("siglip", "qwen2", "molmo"):
        zoo.write_model(place / name, zoo.TINY[name]())
    zoo.write_model(place / "other" / "qwen2", zoo.qwen2(), seed=5)
    models = ["siglip", "qwen2", "molmo", "other/qwen2"]
    assert run(*(word for model in models for word in ("--model", model)), "--output", "all.json") == 0
    reports = read_json(place / "all.json")
    assert [report["model_type"] for report in reports] == ["siglip", "qwen2", "molmo", "qwen2"]
    names = ["siglip", "qwen2", "molmo", "qwen2-2"]
    assert {path.name for path in (place / "all").iterdir()} == {*names, "comparison.csv", "comparison.png"}
    table = pd.read_csv(place / "all" / "comparison.csv")
    counts = [r["total_embedding_layers"] + r["total_norm_layers"] for r in reports]
    assert [len(table[table["model"] == name]) for name in names] == counts
    row = table[(table["model"] == "qwen2-2") & (table["layer"] == "model.embed_tokens.weight")].iloc[0]
    entry = reports[3]["embedding_layers"]["model.embed_tokens.weight"]
    assert (row["norm_mean"], row["abs_mean"]) == pytest.approx((entry["norm_mean"], entry["weight_abs_mean"]))
    assert "Comparison" in capsys.readouterr().out


def test_equal_checkpoints_give_equal_bytes(place: Path) -> None:
    zoo.write_model(place / "vl", zoo.qwen2_5_vl())
    for name in ("a", "b"):
        assert run("--model", "vl", "--output", f"{name}.json") == 0
    for file in (".json", "/embedding_norms.png", "/norm_scales.png"):
        assert (place / f"a{file}").read_bytes() == (place / f"b{file}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere"], "nowhere: no such checkpoint"),
        (["--model", "vit", "--device", "tpu"], "device='tpu'"),
        (["--model", "vit", "--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_no_report(
    place: Path, capsys: pytest.CaptureFixture, arguments: list, said: str
) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (place / "embedding_analysis.json").exists()


def test_the_same_job_is_replaced_and_any_other_refused_in_one_line(place: Path, capsys: pytest.CaptureFixture) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    zoo.write_model(place / "b" / "vit", zoo.vit(), seed=1)
    assert run("--model", "vit") == run("--model", str(place / "vit")) == 0
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    for arguments in (["--model", "b/vit"], ["--model", "vit", "--all-norms"], ["--model", "vit", "--model", "b/vit"]):
        assert run(*arguments) == 1
        assert "embedding_analysis.json" in (said := capsys.readouterr().err) or "holds a result of" in said
        assert said.count("\n") == 1
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("taken", ["report.json", "report/norm_scales.png", "report"])
def test_what_others_made_is_never_replaced(place: Path, capsys: pytest.CaptureFixture, taken: str) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    (place / taken).parent.mkdir(exist_ok=True)
    (place / taken).write_text("mine")
    assert run("--model", "vit", "--output", "report.json") == 1
    assert capsys.readouterr().err.startswith(f"error: {Path(taken).parts[0]}")
    assert (place / taken).read_text() == "mine"
    assert {p.name for p in place.iterdir()} == {"vit", Path(taken).parts[0]}


@pytest.mark.parametrize(
    "arguments", [("--output", "vit/config.json"), ("--output", "vit/x.json"), ("--output-dir", "vit/pictures")]
)
def test_output_never_goes_over_or_into_a_model(
    place: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, str]
) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert run("--model", "vit", *arguments) == 1
    assert "the input vit" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def test_a_model_that_is_refused_among_several_leaves_nothing(place: Path, capsys: pytest.CaptureFixture) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    model = zoo.qwen2()
    zoo.write_model(place / "bad", model, tensors=model.tensors() | {"model.norm.weight": torch.full((24,), torch.nan)})
    assert run("--model", "vit", "--model", "bad") == 1
    assert "model.norm.weight: 24 NaN" in capsys.readouterr().err
    assert {p.name for p in place.iterdir()} == {"vit", "bad"}


def test_a_report_without_a_suffix_would_lie_where_its_pictures_go(place: Path, capsys: pytest.CaptureFixture) -> None:
    zoo.write_model(place / "vit", zoo.vit())
    assert run("--model", "vit", "--output", "report") == 1
    assert "--output report: give it a suffix" in capsys.readouterr().err


def test_names_are_made_unique() -> None:
    assert unique(["a"], []) == ["a"]
    assert unique(["a", "b", "a"], []) == ["a", "b", "a-2"]
    assert unique(["a", "a"], ["a", "a-2"]) == ["a-3", "a-4"]


NORMS_72B = 161


@pytest.mark.parametrize(
    ("flags", "num_norms", "num_ranges"),
    [
        (("--no-curves",), 3, 3),
        # Between any two norm layers of a block lie matrices of 300 MB and more: there is nothing to join.
        ((), NORMS_72B, NORMS_72B),
    ],
)
def test_a_72b_is_one_request_a_shard_and_one_a_norm_layer(
    place: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], num_norms: int, num_ranges: int
) -> None:
    folder = zoo.write_sparse(place / "72b", zoo.qwen2_72b(), shard_bytes=4_000_000_000)
    shards = list(folder.glob("*.safetensors"))
    with serving(folder) as hub:
        point_client_at(hub, place / "hf", monkeypatch)
        assert run("--model", REPO, "--no-embeddings", *flags) == 0
    weights = [name for name, _ in hub.requests if name.endswith(".safetensors")]
    assert len(shards) == 38  # on the hub 37
    assert len(weights) == len(shards) + num_ranges
    assert hub.redirects == len(shards)
    assert sum(hub.sent[shard.name] for shard in shards) <= (len(shards) << 16) + num_norms * 2 * 8192
    assert read_json(place / "embedding_analysis.json")["embedding_layers"] == {}


@pytest.mark.slow
def test_a_model_of_the_hub_costs_its_embeddings_and_norms(place: Path) -> None:
    """The command in a process of its own, told of the hub as a person would: by HF_ENDPOINT."""
    model = zoo.qwen2_5_vl(width=96, depth=6, sizes=(32, 4000, 3000, 60))
    folder = zoo.write_model(place / "tiny", model)
    assert run("--model", "tiny", "--all-norms", "--output", "local.json") == 0
    with serving(folder) as hub:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "hf"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "subspacelab", "norms", "analyze", "--no-track", "--all-norms"]
        command += ["--model", REPO, "--output", "hub.json"]
        hub.faults += ["", "", "500", "drop"]  # on the way
        done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{REPO} at {COMMIT[:12]}" in done.stdout
    local, remote = (read_json(place / f"{name}.json") for name in ("local", "hub"))
    assert remote == local | {"model_name": REPO}
    wanted = [name for name in model.shapes if zoo.is_scale(name) or "embed" in name]
    tensors = model.tensors()
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") + 8
    needed = sum(tensors[name].nbytes for name in wanted) + header
    sent = hub.sent["model.safetensors"]
    # What lies between neighbours comes along; the MLPs, 2 MB each, do not.
    assert needed <= sent < 0.12 * (folder / "model.safetensors").stat().st_size
    assert json.loads((folder / "config.json").read_text()) == model.config
