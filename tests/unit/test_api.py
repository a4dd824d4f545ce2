"""The public Python API: three lines in a notebook each, on whatever holds weights; nothing is left behind."""

import importlib
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tests.language_models import tiny_model
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import write_pictures

import subspacelab as sl

STUDIES = (sl.rotation, sl.lowrank, sl.nullspace, sl.norms)


def test_importing_loads_nothing_heavy_and_is_quick() -> None:
    heavy = ["torch", "transformers", "peft", "mlflow", "dvc", "matplotlib", "pandas", "scipy", "pyarrow"]
    code = f"import sys, subspacelab; print([m for m in {heavy} if m in sys.modules], subspacelab.__all__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[] ['Checkpoint', 'CheckpointError'")


@pytest.mark.parametrize("module", [sl, *STUDIES])
def test_every_public_name_is_there_and_says_what_it_is(module: ModuleType) -> None:
    for name in module.__all__:
        found = getattr(module, name)
        assert inspect.getdoc(found), f"{module.__name__}.{name}"
        if inspect.isfunction(found):
            assert found.__module__.startswith(module.__name__), name


def test_a_package_s_function_is_no_module_once_that_is_imported() -> None:
    for study, names in (
        ("rotation", ["compare", "decompose"]),
        ("lowrank", ["compare", "train", "visualize"]),
        ("norms", ["massive"]),
    ):
        for name in importlib.import_module(f"subspacelab.{study}").__all__:
            home = getattr(importlib.import_module(f"subspacelab.{study}"), name).__module__
            importlib.import_module(home)
        assert all(callable(getattr(importlib.import_module(f"subspacelab.{study}"), name)) for name in names)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_errors_are_value_errors_of_one_line() -> None:
    with pytest.raises(sl.CheckpointError, match=r"^nowhere: no such checkpoint; give a local folder") as e:
        sl.open_checkpoint("nowhere")
    assert isinstance(e.value, ValueError)
    with pytest.raises(sl.SettingError, match=r"^TrainLowrankConfig\.lr: must be greater than 0, got -1\.0$"):
        sl.lowrank.TrainLowrankConfig(lr=-1.0)


def test_rotation(place: Path) -> None:
    a, b = tiny_model(seed=0), tiny_model(seed=1)
    diff = sl.rotation.compare(a, b.state_dict(), include="q_proj", k=4, null_draws=2)
    assert isinstance(diff.layers, pd.DataFrame)
    assert set(diff.layers["weight"]) == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}
    assert isinstance(diff.plot("angles"), Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of square weights alone the composition is an identity
        chain = sl.rotation.compare(a, b, tiny_model(seed=2), include="q_proj", null_draws=0)
        chain.plot("rotation").draw_without_rendering()
    factors = sl.rotation.decompose(a, rank=3, include="q_proj")
    names = [name for name, svd in factors if svd.S.shape == (3,)]
    assert names == list(diff.layers["weight"])
    factors.save(place / "factors")
    again = sl.rotation.Decomposition.load(place / "factors")
    for (_, one), (_, other) in zip(factors, again, strict=True):
        assert torch.equal(one.U, other.U)
    assert [path.name for path in place.iterdir()] == ["factors"]


def test_lowrank(place: Path) -> None:
    write_tiny_qwen_vl(place / "tiny")
    write_pictures(place / "pictures", 12)
    before = sorted(path.name for path in place.iterdir())
    x = sl.lowrank.extract(sl.open_checkpoint("tiny"), "pictures", image_size=112)
    assert x.shape == (12, 16, 48)
    assert x[:2].shape == (2, 16, 48)
    curves: list[int] = []
    settings = sl.lowrank.TrainLowrankConfig(epochs=2, device="cpu")
    net = sl.lowrank.train(x, arch="Sketch", rank=4, settings=settings, log=lambda _, step: curves.append(step))
    a, b, approximation = net(x[0])
    assert (a.shape, b.shape, approximation.shape) == ((16, 4), (4, 48), (16, 48))
    torch.testing.assert_close(a @ b, approximation)
    error = (approximation - x[0]).norm() / x[0].norm()
    _, s, _ = torch.linalg.svd(x[0])
    assert 1 > error >= s[4:].norm() / s.norm() - 1e-5  # no rank 4 is nearer than the SVD
    assert set(curves) == {1, 2}
    found = sl.lowrank.compare(x, [net])
    assert {"SVD", "Sketch", "PCA sketch", "random basis"} <= set(found.table["method"])
    assert isinstance(found.plot(), Figure)
    assert sorted(path.name for path in place.iterdir()) == before
    with pytest.raises(ValueError, match=r"x: \[3, 3\], the network takes \[..., 16, 48\]"):
        net(torch.ones(3, 3))
    net.save(place / "net")
    loaded = sl.lowrank.LowRankModel.load(place / "net")
    assert torch.equal(loaded(x[0])[2], approximation)
    write_pictures(place / "others", 13)
    with pytest.raises(ValueError, match="Sketch: trained on other features"):
        sl.lowrank.compare(sl.lowrank.extract("tiny", "others", image_size=112), loaded)
    with pytest.raises(ValueError, match="net/comparison.csv: missing, or not of a comparison"):
        sl.lowrank.Comparison.load(place / "net")
    (place / "mine").mkdir()
    (place / "mine" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="mine/metrics.json: missing, or not of a comparison of networks"):
        found.save(place / "mine")
    found.save(place / "out")
    found.save(place / "out")
    pd.testing.assert_frame_equal(sl.lowrank.Comparison.load(place / "out").images, found.images)
    x.save(place / "features")
    assert torch.equal(sl.lowrank.Features.load(place / "features")[3], x[3])


def test_nullspace(place: Path) -> None:
    from peft import PeftModel

    model, ids = tiny_model(seed=0), torch.randint(0, 12, (40, 16), generator=torch.Generator().manual_seed(0))
    moments = sl.nullspace.calibrate(model, ids)
    moments.save(place / "moments")
    loaded = sl.nullspace.Calibration.load(place / "moments")
    assert loaded.inputs == moments.inputs
    assert all(torch.equal(m.held_out, loaded.moments[name].held_out) for name, m in moments.moments.items())
    peft_model = sl.nullspace.add_adapter(model, moments, method="lora_null_v2", rank=4)
    built = sl.nullspace.verify(peft_model, [{"input_ids": batch} for batch in ids.split(8)])
    frame = built.to_frame()
    assert (frame["ABX_ratio"] == 0).all()
    assert (frame["BX_ratio"] < frame["BX_ratio_random"]).all()
    trained = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        peft_model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = sl.nullspace.verify(peft_model, ids)
    assert (after.to_frame()["B_weight_norm"] == frame["B_weight_norm"]).all()
    assert after.summary.ABX_ratio > 1e-4
    assert [verdict.metric for verdict in after.verdicts] == ["BX_ratio", "ABX_ratio", "adapter_contribution"]
    peft_model.save_pretrained("adapter")
    plain = PeftModel.from_pretrained(tiny_model(seed=0), "adapter")
    torch.testing.assert_close(plain(input_ids=ids).logits, peft_model.eval()(input_ids=ids).logits)
    after.save(place / "out")
    assert sl.nullspace.Verification.load(place / "out") == after


def test_what_an_adapter_cannot_be_added_as_is_said() -> None:
    model = tiny_model(seed=0)
    with pytest.raises(
        sl.SettingError, match="changes the weights of the model; build it by `nullspace.build_adapter`"
    ):
        sl.nullspace.add_adapter(model, method="pissa")
    with pytest.raises(sl.SettingError, match="starts from calibration inputs; give those of `calibrate`"):
        sl.nullspace.add_adapter(model)
    with pytest.raises(sl.SettingError, match="windows: no token ids"):
        sl.nullspace.calibrate(model, [])
    with pytest.raises(ValueError, match="has no adapter 'default'"):
        sl.nullspace.verify(model, torch.zeros(4, 4, dtype=torch.long))


def test_norms(place: Path) -> None:
    found = sl.norms.analyze(tiny_model(seed=0), all_norms=True)
    assert set(found.norms["layer"]) >= {"model.norm", "model.layers.0.input_layernorm"}
    assert found.embeddings["vocab_size"].iloc[0] == tiny_model().config.vocab_size
    assert found.to_json()["total_norm_layers"] == len(found.norms)
    assert isinstance(found.plot("norm_scales"), Figure)
    with pytest.raises(sl.SettingError, match="kind='x': allowed are embedding_norms, norm_scales"):
        found.plot("x")
    assert not list(place.iterdir())


@pytest.mark.slow
def test_a_run_of_mlflow_takes_the_curves(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{place}/mlflow.db"
    (place / "text.txt").write_text("read")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("TRACKING", "on")
    with sl.tracking.mlflow_run("lowrank", "a sketch", {"rank": 4}, inputs=["text.txt"]) as log:
        log({"mse": 1.0}, 1)
        log({"mse": 0.5}, 2)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lowrank")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.params["rank"], run.info.status) == ("4", "FINISHED")
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["text.txt"]
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "mse")] == [1.0, 0.5]


def test_a_live_model_is_left_as_it_was(place: Path) -> None:
    from peft import PeftModel

    model, ids = tiny_model("opt"), torch.randint(0, 60, (40, 16), generator=torch.Generator().manual_seed(0))
    for part in model.modules():
        part.dropout = 0.5 if isinstance(getattr(part, "dropout", None), float) else getattr(part, "dropout", None)
    model.train().get_decoder().layers[0].eval()
    modes, state = [part.training for part in model.modules()], torch.get_rng_state()
    moments = sl.nullspace.calibrate(model, ids)
    assert [part.training for part in model.modules()] == modes
    adapter = sl.nullspace.add_adapter(model, moments, rank=4, targets="q_proj")
    assert adapter.training
    assert set(adapter.nullspace_meta["targets"]) == {f"model.decoder.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    assert torch.equal(torch.get_rng_state(), state)
    adapter.save_pretrained("adapter")
    loaded = PeftModel.from_pretrained(tiny_model("opt"), "adapter")
    sl.nullspace.verify(loaded, ids)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_windows_come_in_every_form_that_means_them() -> None:
    from subspacelab.nullspace.windows import as_windows

    ids = torch.arange(6).view(2, 3)
    for given in (
        ids,
        ids.tolist(),
        ids.numpy(),
        list(ids),
        [ids],
        {"input_ids": ids},
        [{"input_ids": row} for row in ids],
    ):
        assert torch.equal(as_windows(given).input_ids, ids)
    padded = {"input_ids": [[0, 0, 5], [1, 2, 3]], "attention_mask": [[0, 0, 1], [1, 1, 1]]}
    assert as_windows(padded).input_ids.tolist() == [[5, 0, 0], [1, 2, 3]]
    for wrong in (None, "text", ["text"], 5, torch.rand(2, 3), ids[None], [(ids,)], [{"ids": ids}], [[1, 2], 3]):
        with pytest.raises(sl.SettingError, match="windows: no token ids"):
            as_windows(wrong)


def test_what_a_calibration_or_a_verification_would_get_wrong_is_refused(place: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ids = torch.randint(0, 60, (40, 16), generator=torch.Generator().manual_seed(0))
    model = tiny_model()
    moments = sl.nullspace.calibrate(model, ids)
    with pytest.raises(
        sl.SettingError, match="calibration: does not fit model.layers.0.self_attn.q_proj of this model"
    ):
        sl.nullspace.add_adapter(tiny_model("opt"), moments, rank=4)
    with pytest.raises(sl.SettingError, match="starts from calibration inputs"):
        sl.nullspace.add_adapter(tiny_model(), ids, rank=4)
    with pytest.raises(sl.SettingError, match="windows: ids 100 to 159, the model has 0 to 63"):
        sl.nullspace.calibrate(model, torch.arange(100, 160).view(4, 15))
    with pytest.raises(sl.SettingError, match="300 tokens long, the model has 128 positions"):
        sl.nullspace.calibrate(tiny_model("opt"), torch.ones(5, 300, dtype=torch.long))
    with pytest.raises(sl.SettingError, match="Linear is no language model"):
        sl.nullspace.calibrate(torch.nn.Linear(2, 2), ids)
    with pytest.raises(sl.SettingError, match="device meta"):
        sl.nullspace.calibrate(tiny_model().to("meta"), ids)
    adapter = sl.nullspace.add_adapter(model, moments, rank=4)
    for given in (model, adapter):
        with pytest.raises(sl.SettingError, match="carries an adapter already"):
            sl.nullspace.add_adapter(given, moments, rank=4)
    adapter.merge_adapter()
    with pytest.raises(sl.SettingError, match="has its adapter merged"):
        sl.nullspace.verify(adapter, ids)
    adapter.unmerge_adapter()
    adapter.base_model.disable_adapter_layers()
    with pytest.raises(sl.SettingError, match="does not run with 'default' alone"):
        sl.nullspace.verify(adapter, ids)
    dora = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(sl.SettingError, match="is not plain LoRA"):
        sl.nullspace.verify(dora, ids)


def test_nothing_of_the_user_s_is_replaced(place: Path) -> None:
    a, b = tiny_model(seed=0), tiny_model(seed=1)
    found = sl.rotation.compare(a, b, include="q_proj", k=2, null_draws=0)
    found.save("out")
    found.save("out")
    sl.nullspace.add_adapter(tiny_model(seed=0), method="lora", rank=4).save_pretrained("adapter")
    audit = sl.rotation.audit("adapter", base=a, null_draws=0)
    audit.save("audit")
    audit.save("audit")
    with pytest.raises(ValueError, match="out/layers.csv: missing or no table of an audit"):
        audit.save("out")
    with pytest.raises(ValueError, match="audit/metrics.json: not the metrics of a comparison"):
        found.save("audit")
    (place / "mine").mkdir()
    (place / "mine" / "metrics.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="mine/metrics.json: not the metrics of a comparison"):
        found.save("mine")
    with pytest.raises(ValueError, match="layers.csv: missing"):
        sl.rotation.Comparison.load("mine")
    assert [path.name for path in (place / "mine").iterdir()] == ["metrics.json"]
    sl.rotation.decompose(a, include="q_proj", output_dir="factors")
    with pytest.raises(ValueError, match="holds factors of another checkpoint 'LlamaForCausalLM'"):
        sl.rotation.decompose(b, include="q_proj", output_dir="factors")
    moments = sl.nullspace.calibrate(a, torch.randint(0, 60, (40, 16)))
    with pytest.raises(ValueError, match="no part of a calibration"):
        moments.save("mine")
    moments.save("moments")
    (place / "moments" / "calibration.json").write_text('{"inputs": []}')
    assert sl.nullspace.Calibration.load("moments").inputs == ()
    (place / "moments" / "calibration.json").write_text("{}")
    with pytest.raises(sl.CheckpointError, match="not a calibration, or a damaged one"):
        sl.nullspace.Calibration.load("moments")
