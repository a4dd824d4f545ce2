"""What lies where factors would go: own work is continued, all else stays as it is, and is told before any work."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.faults.workshop import snapshot
from tests.tiny import write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal
from torch import Tensor

from subspacelab.checkpoints import Source, resolve_reference, write_reference
from subspacelab.checkpoints.safetensors_file import DiskFile
from subspacelab.core.ownership import sole_writer
from subspacelab.rotation.decomposition import decompose_into
from subspacelab.rotation.earlier import UNFINISHED
from subspacelab.rotation.factors import INDEX, Decomposition, read_decomposition

Q, K, UP = (f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))


def write(folder: Path, seed: int = 0, **changed: Tensor) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(6, 4, generator=generator) for name in (Q, K, UP)}
    return write_tiny_qwen_vl(folder, tensors=tensors | changed)


def run(source: Path | str | Source, out: Path, **settings: object) -> Decomposition:
    found = source if isinstance(source, Source) else resolve_reference(str(source))
    return decompose_into(found, out, device="cpu", **settings)  # type: ignore[arg-type]


def refused(out: Path, source: Path | str | Source, **settings: object) -> str:
    """The line that refuses it; nothing below `out` has changed."""
    before = snapshot(out)
    said = refusal(lambda: run(source, out, **settings))
    assert snapshot(out) == before
    return said


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "m")


def test_an_output_that_is_the_input_is_refused(model: Path) -> None:
    (model / "vae.safetensors").write_bytes(b"mine")
    assert "lies within, the input" in refused(model.parent, model)
    (model.parent.parent / "link").symlink_to(model.parent)
    assert "lies within, the input" in refused(model.parent.parent / "link", model)


def test_a_pointer_to_the_input_is_no_place_for_output(model: Path, tmp_path: Path) -> None:
    write_reference(tmp_path / "pointers" / "base", resolve_reference(str(model)))
    assert "stands for a checkpoint" in refused(tmp_path / "pointers", tmp_path / "pointers" / "base")


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "elsewhere")


def _file(path: Path) -> None:
    path.write_bytes(b"mine")


@pytest.mark.parametrize("name", [INDEX, UNFINISHED, f"{Q}.safetensors"])
@pytest.mark.parametrize("make", [_file, _folder, _link])
def test_what_others_made_is_refused_where_output_would_go(
    model: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    (tmp_path / "out" / "m").mkdir(parents=True)
    make(tmp_path / "out" / "m" / name)
    said = refused(tmp_path / "out", model)
    assert name in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_factors_go_among_the_files_of_another_model(model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out" / "m"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_bytes(b"mine")
    run(model, tmp_path / "out")
    before = (folder / "notes.txt").read_bytes()
    shutil.copy(model / name, folder)
    assert f"{name}: no factors" in refused(tmp_path / "out", model)
    (folder / name).unlink()
    run(model, tmp_path / "out")
    assert (folder / "notes.txt").read_bytes() == before


def test_a_file_where_the_folder_goes_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("mine")
    assert "m: a file" in refused(tmp_path / "out", model)


def test_an_output_that_is_a_link_is_written_through(model: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").symlink_to(tmp_path / "disk")
    run(model, tmp_path / "out")
    assert (tmp_path / "out" / "m").is_symlink()
    assert (tmp_path / "disk" / INDEX).is_file()


@pytest.mark.parametrize("absolute", [True, False])
def test_two_folders_of_one_name_never_share_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = (write(Path(name) / "m", seed) for seed, name in enumerate("ab"))
    run(a.absolute() if absolute else a, tmp_path / "out")
    said = refused(tmp_path / "out", b.absolute() if absolute else b)
    assert f"another checkpoint '{'m' if absolute else a}'" in said
    assert f"{b.absolute() if absolute else b}'" in said
    said = refused(tmp_path / "out", b, include="nothing|up_proj", exclude="self_attn")
    assert "another checkpoint" in said


def test_one_way_of_typing_it_from_two_folders_means_two_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        write(tmp_path / name / "m", seed)
    monkeypatch.chdir(tmp_path / "a")
    run("m", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "b")
    assert "another checkpoint 'm'" in refused(tmp_path / "out", "m")
    monkeypatch.chdir(tmp_path / "a")
    write(tmp_path / "a" / "m", seed=2)  # trained on, in place
    run("../a/m", tmp_path / "out")


@pytest.mark.parametrize(("one", "other"), [(("a/m", "1"), ("a/m", "2")), (("a/m", "1"), ("b/m", "1"))])
def test_two_repositories_or_revisions_never_share_a_place(
    tmp_path: Path, one: tuple[str, str], other: tuple[str, str]
) -> None:
    places = {source: write(tmp_path / f"snapshot{i}", seed=i) for i, source in enumerate((one, other))}
    sources = [Source(repo, places[repo, commit], commit * 40, "m") for repo, commit in (one, other)]
    first = snapshot(run(sources[0], tmp_path / "out", include="q_proj").folder)
    said = refused(tmp_path / "out", sources[1], include="k_proj")
    assert all(f"{repo}@{commit}" in said for repo, commit in (one, other))
    run(sources[0], tmp_path / "out", include="q_proj")
    assert snapshot(tmp_path / "out" / "m") == first


def test_finished_work_is_read_and_not_written(model: Path, tmp_path: Path) -> None:
    """On a full disk the index would be gone, and not come back."""
    folder = run(model, tmp_path / "out").folder
    before = {path: path.stat() for path in folder.iterdir()}
    run(model, tmp_path / "out")
    run(model, tmp_path / "out", include="q_proj")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == {
        path: found.st_mtime_ns for path, found in before.items()
    }
    (folder / INDEX).unlink()
    run(model, tmp_path / "out")
    assert (folder / INDEX).stat().st_size == before[folder / INDEX].st_size


def test_equal_weights_under_another_name_fit(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "out", include="q_proj")
    moved = shutil.copytree(model, tmp_path / "elsewhere" / "m")
    assert set(run(moved, tmp_path / "out", include="k_proj").weights) == {Q, K}


def test_a_further_selection_is_added_and_one_that_no_longer_holds_goes(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "out", include="q_proj")
    written = (tmp_path / "out" / "m" / f"{Q}.safetensors").stat().st_mtime_ns
    both = run(model, tmp_path / "out", include="k_proj")
    assert (set(both.weights), set(both.skipped)) == ({Q, K}, {UP})
    assert (both.folder / f"{Q}.safetensors").stat().st_mtime_ns == written
    write(model, **{K: torch.full((6, 4), torch.nan)})
    one = run(model, tmp_path / "out", include="q_proj")  # the other is gone: it has become NaN, and was not asked for
    assert set(one.weights) == {Q}
    assert not (one.folder / f"{K}.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 2}, "rank=3, this one is of rank=2"),
        ({}, "rank=3, this one is of rank='all'"),
        ({"rank": 3, "method": "gram"}, "method='auto', this one is of method='gram'"),
        ({"rank": 2, "include": "k_proj"}, "rank=3, this one is of rank=2"),
    ],
)
@pytest.mark.parametrize("killed", [False, True])
def test_other_settings_are_refused_with_both(
    model: Path, tmp_path: Path, settings: dict[str, object], said: str, killed: bool
) -> None:
    folder = run(model, tmp_path / "out", rank=3, include="q_proj").folder
    if killed:
        leave_unfinished(folder)
    assert said in refused(tmp_path / "out", model, **settings)


def leave_unfinished(folder: Path) -> None:
    """The folder as a kill before its index was written would have left it."""
    index = json.loads((folder / INDEX).read_text())
    files = [entry["file"] for entry in index["weights"].values()]
    origin = {"source": index["source"], "place": index["origin"]}
    (folder / UNFINISHED).write_text(json.dumps({"origin": origin, "files": files}))
    (folder / INDEX).unlink()


def test_unfinished_work_of_another_source_is_refused_and_of_this_one_continued(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name / "m", seed) for seed, name in enumerate("ab"))
    folder = run(a, tmp_path / "out").folder
    whole = snapshot(folder)
    leave_unfinished(folder)
    assert "another checkpoint 'm'" in refused(tmp_path / "out", b)
    run(a, tmp_path / "out", include="q_proj")
    assert set(json.loads((folder / INDEX).read_text())["weights"]) == {Q, K, UP}
    run(a, tmp_path / "out")
    assert snapshot(folder) == whole


def test_factors_without_any_list_are_continued_if_they_hold_and_refused_if_not(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name / "m", seed) for seed, name in enumerate("ab"))
    folder = run(a, tmp_path / "out").folder
    whole = snapshot(folder)
    (folder / INDEX).unlink()
    assert "not factors of this checkpoint" in refused(tmp_path / "out", b)
    run(a, tmp_path / "out")
    assert snapshot(folder) == whole


def test_zeroed_bytes_within_factors_are_found_and_made_anew(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "out")
    whole = snapshot(result.folder)
    for name, position in ((Q, -9), (K, -90)):  # the last of U, S, Vh in the file, and one before it
        path = result.folder / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[position - 8 : position] = bytes(8)
        path.write_bytes(content)
        assert "missing or broken" in refusal(result.read, name)
    run(model, tmp_path / "out", include="q_proj")
    assert snapshot(result.folder) == whole


def test_a_folder_of_the_version_before_is_read_and_made_anew(model: Path, tmp_path: Path) -> None:
    folder = run(model, tmp_path / "out").folder
    whole = snapshot(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["origin"]
    for entry in index["weights"].values():
        del entry["factor_digests"], entry["expert"]
    (folder / INDEX).write_text(json.dumps(index))
    run(model, tmp_path / "out")
    assert snapshot(folder) == whole


def test_a_folder_that_another_command_writes_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with sole_writer(tmp_path / "out" / "m"):
        assert "another command is writing there" in refused(tmp_path / "out", model)


def test_what_another_writes_into_unfinished_work_is_found_at_the_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run(write(tmp_path / "other" / "m", seed=1), tmp_path / "others").folder
    from subspacelab.rotation import decomposition as module

    def interfering(folder: Path, *args: object) -> None:
        shutil.copy(other / f"{Q}.safetensors", folder)

    monkeypatch.setattr(module, "write_factors", interfering)
    assert "gone or replaced" in refusal(lambda: run(model, tmp_path / "out"))
    assert not (tmp_path / "out" / "m" / INDEX).exists()


def test_a_checkpoint_that_changes_in_mid_work_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from subspacelab.rotation import decomposition as module

    with monkeypatch.context() as patch:
        begin = module.begin
        patch.setattr(module, "begin", lambda *args: (begin(*args), write(model, seed=1)))
        assert "changed while it was decomposed" in refusal(lambda: run(model, tmp_path / "out"))
    assert not (tmp_path / "out" / "m" / INDEX).exists()
    again, other = run(model, tmp_path / "out"), run(model, tmp_path / "other")
    assert snapshot(again.folder) == snapshot(other.folder)


def test_every_byte_is_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite check, digest and matrix come from one read; the headers are read again with each change of shard."""
    read, count = DiskFile.read, []
    monkeypatch.setattr(DiskFile, "read", lambda file, a, b: (count.append(b - a), read(file, a, b))[1])
    stored = 3 * 6 * 4 * 4  # three float32 matrices
    headers = 2 * ((model / "model.safetensors").stat().st_size - stored)  # to list the tensors, and to read them
    for _ in range(2):
        run(model, tmp_path / "out")
        assert sum(count) == stored + headers
        count.clear()


def test_a_refused_weight_leaves_an_earlier_result(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "out")
    write(model, **{UP: torch.full((6, 4), torch.inf)})
    assert UP in refused(tmp_path / "out", model)
    for entries in (torch.full((6, 4), 1e38), torch.full((6, 4), 1e300, dtype=torch.float64)):
        write(model, **{UP: entries})
        assert f"{UP}: entries up to 1e" in refused(tmp_path / "out", model)
    write(model, **{UP: torch.zeros(6, 4, dtype=torch.int8)})
    assert "quantised" in refused(tmp_path / "out", model)


def test_the_list_of_unfinished_work_leads_out_of_no_folder(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "other")
    folder = tmp_path / "out" / "m"
    folder.mkdir(parents=True)
    victim = tmp_path / "other" / "m" / f"{Q}.safetensors"
    files = [os.path.relpath(victim, folder), str(victim)]
    origin = {"source": {"reference": "m", "revision": None}, "place": None}
    (folder / UNFINISHED).write_text(json.dumps({"origin": origin, "files": files}))
    before = snapshot(tmp_path / "other")
    assert "unfinished.json: not what an unfinished" in refused(tmp_path / "out", model)
    assert snapshot(tmp_path / "other") == before


def test_a_pipe_in_the_place_of_factors_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    folder = run(model, tmp_path).folder
    file = next(folder.glob("*.safetensors"))
    file.unlink()
    os.mkfifo(file)
    assert "not factors of this checkpoint" in refusal(lambda: run(model, tmp_path))
    found = read_decomposition(folder)
    weight = next(name for name, record in found.weights.items() if record.file == file.name)
    with pytest.raises(ValueError, match=r"missing or broken .*not a regular file"):
        found.spectrum(weight)


def test_factors_of_the_older_name_are_of_the_same_checkpoint(model: Path, tmp_path: Path) -> None:
    older, newer = (Source(f"{scheme}:m", model, None, "m") for scheme in ("demo", "pipeline"))
    run(older, tmp_path / "out", include=Q)
    write(model, seed=1)  # trained anew: known by its name alone
    decomposition = run(newer, tmp_path / "out", include=Q)
    assert decomposition.source == {"reference": "pipeline:m", "revision": None}
    other = Source("pipeline:n", write(tmp_path / "n", seed=2), None, "m")
    assert "holds factors of another checkpoint 'pipeline:m'" in refused(tmp_path / "out", other, include=Q)
