"""A base beside itself, beside a model that has moved, and on disk."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.unit.nullspace.forgetting.chat_model import PROBES, byte_tokenizer, tiny_llama, tiny_materials

from subspacelab.models.fine_tuning import IGNORED
from subspacelab.nullspace.forgetting import scores as scores_module
from subspacelab.nullspace.forgetting.materials import Materials
from subspacelab.nullspace.forgetting.probes import Probe
from subspacelab.nullspace.forgetting.scores import BaseRecord, base_record, score

BATCH = 4


@pytest.fixture(scope="module")
def materials() -> Materials:
    return tiny_materials(byte_tokenizer(), tiny_llama().config)


@pytest.fixture(scope="module")
def base(materials: Materials) -> BaseRecord:
    return base_record(tiny_llama(), materials, max_probes=None, batch_size=BATCH)


def moved(by: float = 0.2) -> Any:
    model = tiny_llama()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(noise, alpha=by)
    return model


def test_the_base_beside_itself_has_not_moved(materials: Materials, base: BaseRecord) -> None:
    assert score(tiny_llama(), materials, base, batch_size=BATCH) == base.scores
    assert (base.scores.delta_ce, base.scores.kl_old, base.scores.kl_new) == (0, 0, 0)


def test_a_model_that_moved_is_further_away_the_further_it_moved(materials: Materials, base: BaseRecord) -> None:
    near, far = (score(moved(by), materials, base, batch_size=BATCH) for by in (0.02, 0.2))
    assert 0 < near.kl_old < far.kl_old
    assert 0 < near.kl_new < far.kl_new
    assert near.delta_ce != 0
    assert near.delta_ce == near.ce - base.scores.ce


def test_cross_entropy_and_kl_are_those_of_whole_passes() -> None:
    model, old = moved(), tiny_llama()
    probes = [Probe(f"kind{n}", f"q{n}", f"l{n}", "x" * n) for n in (5, 1, 3)]  # alone of their kind: known
    materials = tiny_materials(byte_tokenizer(), old.config, probes=probes)
    base = base_record(old, materials, max_probes=None, batch_size=BATCH)
    found = score(model, materials, base, batch_size=BATCH)

    def log_probs(of: Any, row: Any) -> torch.Tensor:
        with torch.no_grad():
            logits = of(torch.tensor([row.input_ids])).logits[0].double()
        return logits.log_softmax(-1)[[i - 1 for i, label in enumerate(row.labels) if label != IGNORED]]

    losses = []
    for row in materials.window_rows:
        said = torch.tensor(row.labels[1:])
        losses.append(float(-log_probs(model, row).gather(-1, said[:, None]).mean()))
    assert found.ce == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert len(materials.window_rows[0].labels) == 24
    for kept, rows in ((found.kl_new, materials.test_rows), (found.kl_old, materials.probe_rows)):
        kls = []
        for row in rows:
            p, q = log_probs(old, row), log_probs(model, row)
            kls += (p.exp() * (p - q)).sum(-1).tolist()
        whole = sum(kls) / len(kls)
        assert 0.8 * whole < kept <= whole * (1 + 1e-6)  # a lower bound, of 128 of 260 tokens


def test_a_task_that_is_learned_is_solved(
    materials: Materials, base: BaseRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (base.scores.task, base.scores.validation) == (0, 0)
    model, old = tiny_llama(), score(tiny_llama(), materials, base, batch_size=BATCH)
    rows = [*materials.test_rows[:3], *materials.validation_rows[:1]]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = sum(model(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss for row in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.1:
            break
    found = score(model, materials, base, batch_size=BATCH)
    assert (found.task, found.validation) == (3 / 6, 1 / 5)
    assert found.kl_new > old.kl_new


def test_an_adapter_that_is_nothing_scores_as_the_base(materials: Materials, base: BaseRecord) -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    found = score(adapted, materials, base, batch_size=BATCH)
    assert found.recall_ranked == base.scores.recall_ranked
    assert found.kl_old == pytest.approx(0, abs=1e-6)
    assert found.ce == pytest.approx(base.scores.ce, rel=1e-6)


def test_recall_of_each_kind_adds_up(materials: Materials, base: BaseRecord) -> None:
    kinds = [PROBES[i].kind for i in base.known]
    whole = sum(base.scores.recall_ranked_by_kind[kind] for kind in kinds) / len(kinds)
    assert whole == pytest.approx(base.scores.recall_ranked)
    assert set(base.scores.recall_by_kind) == set(kinds)


def test_a_record_on_disk_is_the_record(materials: Materials, base: BaseRecord, tmp_path: Path) -> None:
    base.save(tmp_path / "base.safetensors")
    again = BaseRecord.load(tmp_path / "base.safetensors")
    assert (again.scores, again.known, again.materials) == (base.scores, base.known, base.materials)
    model = moved()
    assert score(model, materials, again, batch_size=BATCH) == score(model, materials, base, batch_size=BATCH)


def test_a_record_of_other_materials_is_refused(materials: Materials, base: BaseRecord) -> None:
    other = replace(materials, test_rows=materials.test_rows[:-1])
    with pytest.raises(ValueError, match="make it again"):
        score(tiny_llama(), other, base, batch_size=BATCH)


def test_another_file_is_no_record(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors: not a base's record"):
        BaseRecord.load(tmp_path / "model.safetensors")


def test_of_the_known_probes_only_so_many_are_kept_evenly(materials: Materials, base: BaseRecord) -> None:
    record = base_record(tiny_llama(), materials, max_probes=1, batch_size=BATCH)
    assert record.known == base.known[:1]
    assert scores_module._thinned(list(range(10)), 4) == [0, 2, 5, 7]


def test_a_base_that_knows_nothing_is_refused() -> None:
    model = tiny_llama()
    probes = [Probe("kind", f"q{i}", f"l{i}", "Zz" * 9 + str(i)) for i in range(2)]
    easy = [Probe("kind", "q9", "l9", "e")]  # a short answer is always likelier than a long one of random letters
    found = tiny_materials(byte_tokenizer(), model.config, probes=[*probes, *easy])
    record = base_record(model, found, max_probes=None, batch_size=BATCH)
    assert record.known == [2]
    hard = replace(found, probes=found.probes[:2], probe_rows=found.probe_rows[:2])
    with pytest.raises(ValueError, match="knows none of 2 probes"):
        base_record(model, hard, max_probes=None, batch_size=BATCH)


def test_a_diverged_model_is_named(materials: Materials, base: BaseRecord) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        score(model, materials, base, batch_size=BATCH)
