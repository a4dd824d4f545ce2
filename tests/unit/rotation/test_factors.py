import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from subspacelab.linalg.svd import svd
from subspacelab.rotation.factors import FactorRecord, read_decomposition, read_record, write_factors, write_index

RECORD = FactorRecord(
    weight="model.visual.blocks.0.attn.qkv.weight",
    canonical_name="visual.blocks.0.attn.qkv.weight",
    original_shape=(12, 2, 4),
    matrix_shape=(12, 8),
    storage_dtype="BF16",
    rank=8,
    method="lapack",
    requested_method="auto",
    relative_reconstruction_error=4.5e-8,
    orthogonality_error=2e-8,
    source_digest="ab" * 32,
)


def write_one(folder: Path) -> torch.Tensor:
    w = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    write_factors(folder, svd(w, method="lapack"), RECORD)
    write_index(folder, {RECORD.weight: RECORD}, {"x": "vector"}, {"reference": "demo:base", "revision": None})
    return w


def test_what_is_written_is_read(tmp_path: Path) -> None:
    w = write_one(tmp_path)
    decomposition = read_decomposition(tmp_path)
    assert decomposition.weights == {RECORD.canonical_name: RECORD}
    assert decomposition.skipped == {"x": "vector"}
    assert decomposition.source == {"reference": "demo:base", "revision": None}
    expected, got = svd(w, method="lapack"), decomposition.read(RECORD.canonical_name)
    assert torch.equal(got.U, expected.U)
    assert torch.equal(got.S, expected.S)
    assert torch.equal(got.Vh, expected.Vh)
    assert got.method == "lapack"
    assert torch.equal(decomposition.spectrum(RECORD.canonical_name), expected.S)


def test_metadata_is_one_key_of_json(tmp_path: Path) -> None:
    write_one(tmp_path)
    with safe_open(tmp_path / RECORD.file, framework="pt") as f:
        (value,) = f.metadata().values()
    assert json.loads(value)["original_shape"] == [12, 2, 4]
    assert read_record(tmp_path / RECORD.file) == RECORD


def test_truncated_factors_are_not_full() -> None:
    assert RECORD.is_full
    assert not replace(RECORD, rank=4).is_full


def test_a_foreign_or_broken_file_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no header here")
    assert read_record(tmp_path / "a.safetensors") is None
    assert read_record(tmp_path / "absent.safetensors") is None


def test_folder_without_index_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run 'subspacelab rotation decompose' first") as e:
        read_decomposition(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", ["[]", '{"weights": {"a": {}}, "skipped": {}, "source": {}}', "{}", "{"])
def test_an_index_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json") as e:
        read_decomposition(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_factors_that_are_gone_or_cut_are_named(tmp_path: Path, damage: str) -> None:
    write_one(tmp_path)
    path = tmp_path / RECORD.file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="missing or broken") as e:
        read_decomposition(tmp_path).read(RECORD.canonical_name)
    assert RECORD.weight in str(e.value)
    assert "\n" not in str(e.value)


def test_two_weights_of_one_canonical_name_are_refused(tmp_path: Path) -> None:
    twin = replace(RECORD, weight=RECORD.canonical_name, file="")
    write_index(tmp_path, {RECORD.weight: RECORD, twin.weight: twin}, {}, {})
    with pytest.raises(ValueError, match="share one canonical name"):
        read_decomposition(tmp_path)
