"""Weights are read by one interface, wherever they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_qwen_vl_tensors, write_tiny_qwen_vl
from tests.unit.checkpoints.refusal import refusal
from torch import nn

from subspacelab.checkpoints import Source, open_checkpoint, open_weights
from subspacelab.core.errors import CheckpointError


class Tied(nn.Module):
    """A model whose head is its embedding, with a config as transformers' models have."""

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"model_type": "tied"}

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("kind", ["reference", "path", "source", "checkpoint", "dict"])
def test_the_same_tensors_come_from_everywhere(tmp_path: Path, kind: str) -> None:
    folder = write_tiny_qwen_vl(tmp_path / "tiny", sharded=True, dtype=torch.bfloat16)
    tensors = tiny_qwen_vl_tensors(dtype=torch.bfloat16)
    stored = open_checkpoint(folder)
    places: dict[str, Any] = {
        "reference": str(folder),
        "path": folder,
        "source": Source(str(folder), folder, None, "tiny"),
        "checkpoint": stored,
        "dict": tensors,
    }
    with open_weights(places[kind]) as opened:
        assert opened.names == stored.names
        for name in opened.names:
            found, wanted = opened.info(name), stored.info(name)
            assert (found.shape, found.dtype, found.nbytes) == (wanted.shape, wanted.dtype, wanted.nbytes)
            assert opened.digest(name) == stored.digest(name)
            opened.require_floating(name)
        for name, tensor in opened.read_many(stored.names):
            assert torch.equal(tensor, tensors[name])
        assert torch.equal(opened.read_rows(name, 0, 1), tensors[name][:1])


def test_a_module_is_its_state_dict_with_tied_weights_once() -> None:
    module = Tied()
    with open_weights(module) as opened:
        assert opened.names == ["embed.weight", "norm.bias", "norm.weight"]
        assert (opened.source.reference, opened.source.name, opened.source.revision) == ("Tied", "Tied", None)
        assert not opened.source.folder.exists()
        assert opened.config == {"model_type": "tied"}
        assert opened.find_file("tokenizer.json") is None
        assert not opened.read("embed.weight").requires_grad
        assert opened.read("embed.weight").data_ptr() == module.embed.weight.data_ptr()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (3, "int: holds no weights"),
        ({}, "state_dict: holds no tensors"),
        ({"a": 1}, "entry 'a' is a int"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a has layout torch.sparse_coo"),
        (nn.Linear(2, 2, device="meta"), "Linear: weight has a shape and no data"),
        (Path("nowhere/at/all"), "nowhere/at/all: no such checkpoint"),
        ("nowhere/at/all", "nowhere/at/all: no such checkpoint"),
    ],
)
def test_what_holds_no_weights_is_refused_in_one_line(place: Any, said: str) -> None:
    assert said in refusal(lambda: open_weights(place))


def test_codes_are_refused_as_in_files() -> None:
    with open_weights({"q.weight": torch.zeros(2, 2, dtype=torch.int8)}) as opened:
        assert opened.quantisation("q.weight") == "integer codes"
        with pytest.raises(ValueError, match="quantised"):
            opened.read("q.weight")


def test_a_list_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError):
        open_weights([torch.zeros(1)])  # type: ignore[arg-type]
