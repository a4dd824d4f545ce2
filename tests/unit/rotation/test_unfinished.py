"""Rows that are kept while a comparison is at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.unit.rotation.chains import chain_tensors

from subspacelab.core.devices import Processes
from subspacelab.rotation import measuring
from subspacelab.rotation.chain import Chain, open_chain
from subspacelab.rotation.groups import make_groups
from subspacelab.rotation.measuring import Measured, Settings, measure_chain
from subspacelab.rotation.unfinished import KeptRows

FEW = "v_proj|qkv"
SETTINGS = Settings(k=4, null_draws=1, device="cpu", null_models=("spectrum", "permuted"))


@pytest.fixture
def chain() -> Chain:
    return open_chain(*chain_tensors()[:2], include=FEW)


def measure(chain: Chain, kept: KeptRows | None = None, **group: Any) -> Measured:
    return measure_chain(chain, make_groups(chain.names), SETTINGS, kept=kept, group=Processes(**group))


def same(a: Measured, b: Measured) -> bool:
    pd.testing.assert_frame_equal(a.layers, b.layers, check_exact=True)
    return all(torch.equal(a.spectra[name], b.spectra[name]) for name in b.spectra)


def test_rows_are_kept_and_not_measured_again(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptRows(tmp_path / "unfinished", SETTINGS.job)
    expected, measured = measure(chain), []
    rows = measuring.measure_rows

    def counted(chain: Chain, name: str, *rest: Any) -> Any:
        measured.append(name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return rows(chain, name, *rest)

    monkeypatch.setattr(measuring, "measure_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(chain, kept)
    assert same(measure(chain, kept), expected)
    assert sorted(measured) == sorted([*chain.names, measured[2]])
    kept.remove()
    assert not list(tmp_path.iterdir())


def test_a_weight_that_has_changed_is_measured_again(chain: Chain, tmp_path: Path) -> None:
    kept = KeptRows(tmp_path, SETTINGS.job)
    base, tuned, _ = chain_tensors()
    measure(chain, kept)
    name = next(name for name in tuned if "v_proj" in name)
    other = open_chain(base, tuned | {name: tuned[name] * 2}, include=FEW)
    assert same(measure(other, kept), measure(other))


def test_processes_share_the_weights(chain: Chain, tmp_path: Path) -> None:
    """Each in turn: the first sees the rows of the second, as both wait for each other where processes are two."""
    kept, expected = KeptRows(tmp_path, SETTINGS.job), measure(chain)
    with pytest.raises(KeyError):  # the rows of the other are not there yet
        measure(chain, kept, rank=1, count=2)
    half = set(kept.read())
    assert 0 < len(half) < len(chain.names)
    assert same(measure(chain, kept, rank=0, count=2), expected)


@pytest.mark.parametrize("what", ["file", "folder", "other"])
def test_what_is_not_ours_is_refused_and_kept(chain: Chain, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "unfinished"
    if what == "other":
        measure(chain, KeptRows(folder, SETTINGS.job | {"seed": 1}))
        said = "holds a result of seed=1, this one is of seed=42"
    elif what == "file":
        folder.write_text("mine")
        said = "no folder of rows"
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        said = "notes.txt: not what an unfinished 'rotation compare' leaves"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=said):
        measure(chain, KeptRows(folder, SETTINGS.job))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from tests.tiny import LAYOUTS, write_tiny_qwen_vl

    root = tmp_path_factory.mktemp("stored")
    for name, tensors in zip(("base", "tuned"), chain_tensors()[:2], strict=True):
        write_tiny_qwen_vl(root / name, layout=LAYOUTS[0], tensors=tensors, dtype=torch.float32)
    return [str(root / name) for name in ("base", "tuned")]


def command(places: list[str], out: Path, *launcher: str) -> list[str]:
    given = ["--output-dir", str(out), "--no-track", "--k", "4", "--null", "1", "--device", "cpu"]
    return [sys.executable, *launcher, "-m", "subspacelab", "rotation", "compare", *places, *given]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_killed_comparison_continues_and_two_processes_give_the_bytes_of_one(
    stored: list[str], tmp_path: Path
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(stored, tmp_path / "one"), check=True, env=environment)
    process = subprocess.Popen(command(stored, tmp_path / "killed"), env=environment)
    while process.poll() is None and len(list((tmp_path / "killed" / "unfinished").glob("*.safetensors"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command(stored, tmp_path / "killed"), check=True, env=environment)
    assert contents(tmp_path / "killed") == contents(tmp_path / "one")
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    subprocess.run(command(stored, tmp_path / "two", *launcher), check=True, env=environment)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
