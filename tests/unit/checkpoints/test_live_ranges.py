"""A hub repository is read where it is: the same tensors as on disk, and hardly a byte more than they have."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from tests.tiny import tiny_qwen_vl_tensors, write_tiny_qwen_vl
from tests.unit.checkpoints.range_hub import COMMIT, REPO, RangeHub, served_repository
from tests.unit.checkpoints.refusal import refusal

from subspacelab.checkpoints import Source, open_reference, open_source, write_reference
from subspacelab.checkpoints import hub as ranges


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeHub]:
    """The tiny checkpoint in two shards, served; the hub's client is pointed there."""
    root = write_tiny_qwen_vl(tmp_path / "repo", sharded=True, dtype=torch.bfloat16)
    monkeypatch.setattr(ranges, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(ranges, "WAITS", (0.01, 0.01))
    monkeypatch.setattr(ranges, "HEAD_BYTES", 256)  # less than the headers: not a byte of data comes with them
    with served_repository(root, tmp_path / "cache", monkeypatch) as server:
        yield server


def header_bytes(file: Path) -> int:
    with file.open("rb") as f:
        return 8 + int(struct.unpack("<Q", f.read(8))[0])


def weights_sent(hub: RangeHub) -> int:
    return sum(n for name, n in hub.sent.items() if name.endswith(".safetensors"))


def test_a_look_at_the_headers_sends_the_headers_and_no_data(hub: RangeHub) -> None:
    with open_reference(REPO) as remote, open_source(hub.root) as local:
        assert remote.names_in_file_order() == local.names_in_file_order()
        assert [remote.info(n) for n in remote.names] == [local.info(n) for n in local.names]
        assert remote.config == local.config
        assert (remote.source.revision, remote.source.reference, remote.source.name) == (COMMIT, REPO, "tiny")
        assert remote.find_file("tokenizer.json") is None
    assert weights_sent(hub) == sum(map(header_bytes, hub.root.glob("*.safetensors")))


def test_tensors_and_rows_are_those_of_the_file_and_cost_their_own_bytes(hub: RangeHub) -> None:
    expected = tiny_qwen_vl_tensors(dtype=torch.bfloat16)
    with open_reference(f"{REPO}@main") as remote:
        headers = weights_sent(hub)
        read = dict(remote.read_many(list(expected)))
        assert list(read) == list(expected)
        assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
        assert weights_sent(hub) - headers == sum(t.nbytes for t in expected.values())
        rows = remote.read_rows("visual.patch_embed.proj.weight", 3, 7)
        assert torch.equal(rows, expected["visual.patch_embed.proj.weight"][3:7])
        assert remote.read_rows("model.norm.weight", 2, 2).shape == (0,)
        assert remote.digest("model.norm.weight") == open_source(hub.root).digest("model.norm.weight")


def test_a_shard_that_the_cache_holds_is_not_fetched_again(hub: RangeHub) -> None:
    name = "model-00002-of-00002.safetensors"
    hf_hub_download(REPO, name, revision=COMMIT)
    hub.sent.clear()
    expected = tiny_qwen_vl_tensors(dtype=torch.bfloat16)
    with open_reference(REPO) as remote:
        assert all(torch.equal(tensor, expected[name]) for name, tensor in remote.read_many(list(expected)))
    assert hub.sent[name] == 0
    assert hub.sent["model-00001-of-00002.safetensors"] > 0


def test_neighbours_are_one_request_and_come_in_the_order_they_were_asked_for(hub: RangeHub) -> None:
    expected = tiny_qwen_vl_tensors(dtype=torch.bfloat16)
    with open_reference(REPO) as remote:
        hub.requests.clear()
        names = remote.names[::-3]
        read = list(remote.read_many(names))
        assert [name for name, _ in read] == names
        assert all(torch.equal(tensor, expected[name]) for name, tensor in read)
        assert len(hub.requests) == len({remote.info(name).shard for name in names}) == 2
        hub.requests.clear()
        assert torch.equal(remote.read(names[0]), expected[names[0]])  # nothing is kept
        assert len(hub.requests) == 1
        hub.faults += ["404"] * 9
        assert "no such file" in refusal(lambda: list(remote.read_many(names)))
        hub.faults.clear()
        assert "no such tensor" in refusal(lambda: list(remote.read_many([*names, "ghost"])))


@pytest.mark.parametrize("num_rows", [1, 7, 1000])
def test_chunks_are_the_rows_in_their_order(hub: RangeHub, num_rows: int) -> None:
    expected = tiny_qwen_vl_tensors(dtype=torch.bfloat16)["model.embed_tokens.weight"]
    for reference in (REPO, str(hub.root)):
        with open_reference(reference) as opened:
            chunks = list(opened.read_chunks("model.embed_tokens.weight", num_rows))
            assert [len(chunk) for chunk in chunks[:-1]] == [num_rows] * (len(chunks) - 1)
            assert torch.equal(torch.cat(chunks), expected)
            assert len(next(iter(opened.read_chunks("model.embed_tokens.weight", num_rows)))) == len(chunks[0])


def test_breaks_on_the_way_are_mended(hub: RangeHub) -> None:
    expected = tiny_qwen_vl_tensors(dtype=torch.bfloat16)["model.embed_tokens.weight"]
    with open_reference(REPO) as remote:
        hub.faults += ["500", "drop"]
        assert torch.equal(remote.read("model.embed_tokens.weight"), expected)


@pytest.mark.parametrize("fault", ["500", "drop", "short", "whole"])
def test_a_server_that_stays_broken_is_one_line(hub: RangeHub, fault: str) -> None:
    hub.faults += [fault] * 50
    message = refusal(open_reference, REPO)
    assert message.startswith(f"{REPO}@{COMMIT[:12]}: model-0000")
    assert "hf download" in message


def test_a_truncated_shard_is_found_before_anything_is_read(hub: RangeHub) -> None:
    shard = hub.root / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"truncated, {len(content) - 1} of {len(content)} bytes" in refusal(open_reference, REPO)


@pytest.mark.parametrize("kept", [-1, 100, 4])
def test_a_truncated_file_on_the_disk_is_found_too(tmp_path: Path, kept: int) -> None:
    file = write_tiny_qwen_vl(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(open_reference, str(tmp_path))
    assert message.startswith(str(file))
    assert "truncated" in message


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_folder_and_one_file_of_it_give_what_open_checkpoint_gives(tmp_path: Path, format: str) -> None:
    write_tiny_qwen_vl(tmp_path, format=format, dtype=torch.bfloat16)  # type: ignore[arg-type]
    (tmp_path / "tokenizer.json").write_text("{}")
    (weights,) = (p for p in tmp_path.iterdir() if p.suffix != ".json")
    for place in (tmp_path, weights):
        with open_reference(str(place)) as ours, open_source(place) as theirs:
            assert (ours.source, ours.config) == (theirs.source, theirs.config)
            assert ours.find_file("tokenizer.json") == theirs.find_file("tokenizer.json") == tmp_path / "tokenizer.json"
            assert ours.names_in_file_order() == theirs.names_in_file_order()
            for name in theirs.names:
                assert ours.info(name) == theirs.info(name)
                assert torch.equal(ours.read(name), theirs.read(name))
                assert torch.equal(ours.read_rows(name, 1, 3), theirs.read_rows(name, 1, 3))


def test_a_file_that_shrinks_after_it_was_opened_is_one_line(tmp_path: Path) -> None:
    file = write_tiny_qwen_vl(tmp_path) / "model.safetensors"
    with open_reference(str(tmp_path)) as opened:
        file.write_bytes(file.read_bytes()[:-8])
        last = opened.names_in_file_order()[-1]
        assert "model.safetensors: truncated" in refusal(opened.read, last)


def test_what_is_no_safetensors_file_is_refused(hub: RangeHub) -> None:
    (hub.root / "model-00001-of-00002.safetensors").write_bytes(b"<html>not found</html>")
    assert "not a safetensors file" in refusal(open_reference, REPO)


def test_a_name_that_only_the_index_has(hub: RangeHub) -> None:
    index = hub.root / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    for reference in (REPO, str(hub.root)):
        message = refusal(open_reference, reference)
        assert "model-00001-of-00002.safetensors: model.ghost.weight is not in it, though the index says so" in message


def test_one_file_without_a_config_is_a_checkpoint_too(hub: RangeHub) -> None:
    for file in hub.root.iterdir():
        file.unlink()
    write_tiny_qwen_vl(hub.root)
    (hub.root / "config.json").unlink()
    with open_reference(REPO) as remote:
        assert remote.config == {}
        assert torch.equal(remote.read("model.norm.weight"), tiny_qwen_vl_tensors()["model.norm.weight"])


def test_torch_files_are_downloaded_whole(hub: RangeHub) -> None:
    for file in hub.root.iterdir():
        file.unlink()
    write_tiny_qwen_vl(hub.root, format="bin")
    with open_reference(REPO) as remote:
        assert remote.source.revision == COMMIT
        assert remote.source.folder.joinpath("pytorch_model.bin").is_file()


def test_a_pointer_of_the_pipeline_leads_to_the_hub_and_keeps_its_name(hub: RangeHub, tmp_path: Path) -> None:
    write_reference(tmp_path / "demo" / "base", Source(REPO, tmp_path, COMMIT, "tiny"))
    with open_reference("demo:base", demo_root=tmp_path / "demo") as remote:
        assert (remote.source.name, remote.source.reference, remote.source.revision) == ("base", REPO, COMMIT)
    assert weights_sent(hub) == sum(map(header_bytes, hub.root.glob("*.safetensors")))


def test_local_folders_and_the_cache_need_no_hub(
    hub: RangeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    for reference in (str(hub.root), REPO):
        with open_reference(reference) as opened:
            assert opened.config["model_type"] == "qwen2_5_vl"
    assert hub.requests == []
    assert "HF_HUB_OFFLINE is set" in refusal(open_reference, "lab/other")
