import json
import math
from pathlib import Path

import pytest
import torch
from tests.tiny import LAYOUTS, Layout, tiny_qwen_vl_shapes, tiny_qwen_vl_tensors, write_tiny_qwen_vl
from torch import Tensor

from subspacelab.checkpoints import resolve_reference
from subspacelab.rotation.decomposition import decompose
from subspacelab.rotation.factors import Decomposition

ONE = "model.layers.0.self_attn.q_proj.weight"


def run(folder: Path, out: Path, **settings: object) -> Decomposition:
    return decompose(resolve_reference(str(folder)), out, device="cpu", **settings)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def changed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return tiny_qwen_vl_tensors() | {name: tensor}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen_vl(tmp_path_factory.mktemp("checkpoints") / "tiny", sharded=True)


@pytest.fixture(scope="module")
def done(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Decomposition:
    return run(checkpoint, tmp_path_factory.mktemp("svd"))


def test_every_matrix_is_decomposed_and_every_vector_listed(done: Decomposition) -> None:
    shapes = tiny_qwen_vl_shapes()
    assert set(done.weights) == {name for name, shape in shapes.items() if len(shape) >= 2}
    assert done.skipped == {name: "vector" for name, shape in shapes.items() if len(shape) == 1}
    assert done.source == {"reference": "tiny", "revision": None}  # the folder's path stays out
    assert {path.name for path in done.folder.iterdir()} == {f"{name}.safetensors" for name in done.weights} | {
        "index.json"
    }


def test_factors_are_the_svd_of_the_weight(done: Decomposition) -> None:
    for name, w in tiny_qwen_vl_tensors().items():
        if w.ndim < 2:
            continue
        matrix = w.reshape(w.shape[0], -1).double()
        got, record = done.read(name), done.weights[name]
        assert record.matrix_shape == tuple(matrix.shape)
        assert record.original_shape == tuple(w.shape)
        assert record.rank == min(matrix.shape) == len(got.S)
        # float32 rounding of U, S and Vh: some 6e-8 each
        error = (got.U.double() * got.S.double()) @ got.Vh.double() - matrix
        assert error.norm() / matrix.norm() < 2e-7
        assert record.relative_reconstruction_error < 2e-7
        assert record.orthogonality_error < 5e-7
        largest = got.U.gather(0, got.U.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()
        assert torch.allclose(got.S.double(), torch.linalg.svdvals(matrix), rtol=1e-6, atol=0)


def test_five_axes_become_two(done: Decomposition) -> None:
    record = done.weights["visual.patch_embed.proj.weight"]
    assert record.original_shape == (32, 3, 2, 14, 14)
    assert record.matrix_shape == (32, 3 * 2 * 14 * 14)


def test_index_holds_what_was_promised(done: Decomposition) -> None:
    text = (done.folder / "index.json").read_text()
    entry = json.loads(text)["weights"][ONE]
    promised = {"file", "canonical_name", "original_shape", "matrix_shape", "storage_dtype", "rank", "method"}
    promised |= {"relative_reconstruction_error", "orthogonality_error", "source_digest"}
    assert promised <= set(entry)
    assert str(done.folder.parent) not in text


def test_two_runs_give_the_same_bytes(checkpoint: Path, done: Decomposition, tmp_path: Path) -> None:
    assert contents(run(checkpoint, tmp_path).folder) == contents(done.folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_factors(layout: Layout, done: Decomposition, tmp_path: Path) -> None:
    other = run(write_tiny_qwen_vl(tmp_path / "c" / "tiny", layout=layout), tmp_path)
    assert set(other.weights) == set(done.weights)
    for name in (ONE, "visual.blocks.1.mlp.down_proj.weight"):
        assert torch.equal(other.read(name).U, done.read(name).U)
        assert torch.equal(other.read(name).Vh, done.read(name).Vh)


def test_rank_keeps_the_leading_triples(checkpoint: Path, done: Decomposition, tmp_path: Path) -> None:
    kept = run(checkpoint, tmp_path, rank=8)
    assert all(record.rank == 8 and not record.is_full for record in kept.weights.values())
    got, full = kept.read(ONE), done.read(ONE)
    # Methods may differ between a truncated and a full run: equal up to float32 rounding.
    assert torch.allclose(got.S, full.S[:8], rtol=1e-5)
    residual = full.S[8:].double().norm() / full.S.double().norm()
    assert math.isclose(kept.weights[ONE].relative_reconstruction_error, residual.item(), rel_tol=1e-5)


def test_include_and_exclude_choose_and_say_so(checkpoint: Path, tmp_path: Path) -> None:
    found = run(checkpoint, tmp_path, include="self_attn", exclude="k_proj|bias")
    assert len(found.weights) == 2 * 3
    assert found.skipped["model.embed_tokens.weight"] == "left out by include='self_attn'"
    assert found.skipped["model.layers.0.self_attn.k_proj.weight"] == "left out by exclude='k_proj|bias'"


def test_what_holds_is_kept_and_what_does_not_is_redone(checkpoint: Path, tmp_path: Path) -> None:
    folder = run(checkpoint, tmp_path).folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    (folder / f"{ONE}.safetensors").write_bytes(b"cut short")
    run(checkpoint, tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert {name for name in before if after[name] != before[name]} == {f"{ONE}.safetensors"}


def test_a_changed_weight_is_redone_and_a_gone_one_removed(tmp_path: Path) -> None:
    tensors = changed(ONE, torch.eye(48))
    run(write_tiny_qwen_vl(tmp_path / "tiny"), tmp_path / "svd")
    gone = "model.layers.1.mlp.up_proj.weight"
    del tensors[gone]
    again = run(write_tiny_qwen_vl(tmp_path / "tiny", tensors=tensors), tmp_path / "svd")
    assert torch.equal(again.read(ONE).S, torch.ones(48))
    assert gone not in again.weights
    assert not (again.folder / f"{gone}.safetensors").exists()


@pytest.mark.parametrize("method", ["lapack", "gram"])
def test_the_method_is_the_one_asked_for(checkpoint: Path, tmp_path: Path, method: str) -> None:
    assert run(checkpoint, tmp_path, include=ONE, method=method).weights[ONE].method == method


def test_leftovers_of_a_killed_run_are_removed(checkpoint: Path, done: Decomposition, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    partial = folder / f".{ONE}.safetensors.{'0a' * 16}.partial"
    partial.mkdir(parents=True)
    (partial / ".tmp8fQ2").write_bytes(b"half")
    run(checkpoint, tmp_path)
    assert contents(folder) == contents(done.folder)


def test_errors_are_logged_weight_by_weight(checkpoint: Path, tmp_path: Path) -> None:
    points: list[tuple[int, float]] = []
    result = run(
        checkpoint,
        tmp_path,
        include="q_proj.weight",
        log=lambda metrics, step: points.append((step, metrics["relative_reconstruction_error"])),
    )
    assert points == [(i, r.relative_reconstruction_error) for i, r in enumerate(result.weights.values())]
    assert result.metrics["num_weights"] == 2
    assert result.metrics["max_relative_reconstruction_error"] == max(value for _, value in points)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 33}, "rank=33: weight 'model.layers.0.self_attn.k_proj.weight' of shape 24x48 allows 1 to 24"),
        ({"rank": 0}, "rank=0"),
        ({"include": "("}, "include='(': not a regular expression"),
        ({"exclude": "["}, "exclude='[': not a regular expression"),
        ({"include": "no such"}, "no weight is left to decompose"),
        ({"method": "magic"}, "method='magic': allowed are auto, gram, lapack"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    checkpoint: Path, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError) as e:
        run(checkpoint, tmp_path / "svd", **settings)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "svd").exists()


def test_a_device_that_does_not_exist_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device='tpu': allowed are auto, cpu, cuda, mps"):
        decompose(resolve_reference(str(checkpoint)), tmp_path, device="tpu")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    broken = torch.eye(48)
    broken[3, 4] = value
    folder = write_tiny_qwen_vl(tmp_path / "tiny", tensors=changed(ONE, broken))
    with pytest.raises(ValueError, match=ONE) as e:
        run(folder, tmp_path / "svd")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "svd" / "tiny" / "index.json").exists()
    assert ONE in run(folder, tmp_path / "svd", exclude="q_proj").skipped  # the rest can be had


def test_a_quantised_weight_is_named(tmp_path: Path) -> None:
    codes = torch.zeros(48, 48, dtype=torch.int8)
    folder = write_tiny_qwen_vl(tmp_path / "tiny", tensors=changed(ONE, codes))
    with pytest.raises(ValueError, match=f"{ONE}: quantised") as e:
        run(folder, tmp_path / "svd")
    assert "\n" not in str(e.value)


def test_integer_buffers_are_skipped(tmp_path: Path) -> None:
    ids = {"visual.position_ids": torch.arange(6).reshape(2, 3)}
    folder = write_tiny_qwen_vl(tmp_path / "tiny", tensors=tiny_qwen_vl_tensors() | ids)
    assert run(folder, tmp_path / "svd").skipped["visual.position_ids"] == "not floating (I64)"


def test_a_zero_matrix_keeps_orthonormal_bases(tmp_path: Path) -> None:
    folder = write_tiny_qwen_vl(tmp_path / "tiny", tensors=changed(ONE, torch.zeros(48, 48)))
    result = run(folder, tmp_path / "svd", include="q_proj.weight")
    assert result.weights[ONE].relative_reconstruction_error == 0
    assert result.weights[ONE].orthogonality_error < 5e-7  # float32 rounding of the entries of U and Vh
