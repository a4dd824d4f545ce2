"""What is true of real pretrained models, beside transformers, PEFT and NumPy.

`SUBSPACELAB_REAL_MODELS=FOLDER pytest -m real`, where FOLDER holds SmolLM2-135M-Instruct, gemma-3-270m and
all-MiniLM-L6-v2, or some of them; skipped without the variable. Some two minutes of a core.
"""

import json
import os
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import subspacelab as sl
from subspacelab.checkpoints import open_checkpoint, resolve_reference

ROOT = os.environ.get("SUBSPACELAB_REAL_MODELS")
SMOLLM2, GEMMA, MINILM = "SmolLM2-135M-Instruct", "gemma-3-270m", "all-MiniLM-L6-v2"
NORMS = {SMOLLM2: 61, GEMMA: 109, MINILM: 13}
"""Norm layers: two a block and the last; Gemma 3 has four a block and two in attention, BERT one at the embedding."""

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(ROOT is None, reason="SUBSPACELAB_REAL_MODELS names no folder of real models"),
]


def place(name: str) -> Path:
    folder = Path(ROOT or "") / name
    return folder if folder.is_dir() else pytest.skip(f"{folder} is not there")


def scale_of(norm: nn.Module) -> Tensor:
    """What a norm multiplies by, asked of the module itself: x = +1, -1, +1, ... has mean 0 and mean square 1."""
    width = next(norm.parameters()).shape[-1]
    x = torch.tensor([1.0, -1.0]).repeat(width // 2)
    return (norm(x) - norm(-x)) / (2 * x)


@pytest.mark.parametrize("name", list(NORMS))
def test_the_scale_of_every_norm_is_what_the_model_multiplies_by(name: str) -> None:
    folder = place(name)
    found = sl.norms.analyze(folder, all_norms=True)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    modules = {n: m for n, m in model.named_modules() if type(m).__name__.endswith("Norm")}
    assert len(found.norms) == len(modules) == NORMS[name]
    with torch.no_grad():
        for row in found.norms.to_dict("records"):
            layer = row["layer"]
            scale = scale_of(modules[layer.removeprefix("model.").removeprefix("bert.")])
            # The norm's own eps of up to 1e-5 beside a mean square of 1.
            assert row["mean"] == pytest.approx(scale.mean().item(), rel=1e-5, abs=1e-5), layer
            assert row["std"] == pytest.approx(scale.std(correction=0).item(), rel=1e-3, abs=1e-5), layer


@pytest.mark.parametrize("name", list(NORMS))
def test_the_vectors_of_the_token_embedding_have_numpys_norms(name: str) -> None:
    folder = place(name)
    found = sl.norms.analyze(folder)
    kinds = [e.layer.kind for e in found.embedding_layers]
    assert kinds.count("token") == 1
    assert (name == MINILM) == ("position" in kinds)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    expected = np.linalg.norm(model.get_input_embeddings().weight.detach().double().numpy(), axis=1)
    token = next(e for e in found.embedding_layers if e.layer.kind == "token")
    np.testing.assert_allclose(token.vectors.norms.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "weight"), [(SMOLLM2, "q_proj"), (GEMMA, "k_proj"), (MINILM, "attention.self.query")])
def test_a_weight_is_its_factors_and_does_not_move_against_itself(name: str, weight: str) -> None:
    folder, only = place(name), rf"\.0\..*{weight}\.weight"
    found = sl.rotation.decompose(folder, include=only, device="cpu")
    (key,) = found.weights
    factors, stored = found.read(key), open_checkpoint(folder).read(found.weights[key].key).double()
    product = factors.U.double() * factors.S.double() @ factors.Vh.double()
    assert torch.linalg.vector_norm(product - stored) < 1e-6 * torch.linalg.vector_norm(stored)
    (row,) = sl.rotation.compare(folder, folder, include=only, device="cpu").layers.to_dict("records")
    assert row["unchanged"] == 1
    assert row["update_norm"] == row["nss"] == row["intruders"] == 0
    assert row["angle_mean"] < 1e-6


@pytest.mark.parametrize(("name", "dims"), [(SMOLLM2, [247, 507]), (GEMMA, [163, 400])])
def test_massive_dimensions_are_those_of_the_hidden_states(name: str, dims: list[int]) -> None:
    folder = place(name)
    ids = AutoTokenizer.from_pretrained(folder)(topics["lambda"], return_tensors="pt").input_ids[:, :128]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[1:-1]  # the last one is behind the final norm
    size = torch.stack(states)[:, 0].abs()  # [layers tokens dim]
    median = size.flatten(1).median(dim=1).values[:, None, None]
    massive = ((size > 100) & (size > 1000 * median)).any(dim=1).any(dim=0)
    assert massive.nonzero().flatten().tolist() == dims
    assert sl.norms.massive(model, ids).metrics["massive_dims"] == dims


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA])
def test_an_adapter_in_the_null_space_leaves_the_model_as_it_was_and_hardly_sees_its_text(
    name: str, tmp_path: Path
) -> None:
    folder = place(name)
    (tmp_path / "text").mkdir()
    for part, chosen in (("train", list(topics)[:20]), ("test", list(topics)[20:30])):
        rows = [json.dumps({"text": topics[topic]}) + "\n" for topic in chosen]
        (tmp_path / "text" / f"{part}.jsonl").write_text("".join(rows))
    text = {"calib_dataset": str(tmp_path / "text"), "seq_len": 128}
    settings = sl.nullspace.BuildSettings(**text, calib_loader_size=48, targets=["q_proj", "up_proj"])
    source, adapter = resolve_reference(str(folder)), tmp_path / "adapter"
    sl.nullspace.build_adapter(source, adapter, method="lora_null_v2", rank=8, seed=0, settings=settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, adapter).eval()(ids).logits
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    config = sl.nullspace.VerifyAdapterConfig(**text, calib_loader_size=4)
    verified = sl.nullspace.verify_adapter(adapter, config, seed=1)
    for layer in verified.stats:
        assert layer.BX_ratio < layer.BX_ratio_random / 2, layer.layer
