from pathlib import Path

import numpy as np
import pytest
from tests.tiny import write_tiny_qwen_vl
from tests.unit.lowrank.caches import encoded_picture

from subspacelab.cli import main
from subspacelab.lowrank.display import describe_throughput
from subspacelab.lowrank.extraction import Throughput
from subspacelab.lowrank.features import Features


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as e:
        main(["lowrank", "cache", *map(str, arguments)])
    streams = capsys.readouterr()
    return int(e.value.code or 0), streams.out, streams.err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_qwen_vl(tmp_path / "tiny")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded_picture(rng))
    return tmp_path / "in"


@pytest.mark.parametrize("spelt", [lambda flag: flag, lambda flag: "--" + flag[2:].replace("-", "_")])
def test_both_spellings_cache_pictures(capsys, tmp_path, model, images, spelt) -> None:
    flags = {"--model-id": model, "--images": images, "--output-dir": tmp_path / "out", "--image-size": 56}
    flags |= {"--limit": 2, "--batch-size": 1, "--device": "cpu"}
    given = [word for flag, value in flags.items() for word in (spelt(flag), value)]
    code, out, _ = _run(capsys, *given, spelt("--no-track"))
    assert code == 0
    assert "tiny" in out
    assert "[4, 48] F32" in out
    features = Features(tmp_path / "out")
    assert (len(features), features.meta.image_size, features.meta.model) == (2, 56, "tiny")


@pytest.mark.parametrize(("tower", "bound"), [(2.0, "decode-bound"), (8.0, "model-bound")])
def test_what_holds_the_pictures_up_is_said(tower: float, bound: str) -> None:
    said = describe_throughput(Throughput(100, 10.0, tower, 5.0, 3))
    assert said.startswith(f"10 pictures per second, {bound}: the tower alone {100 / tower:.3g}, decoding alone (3 pr")
    assert said.endswith(") 20")


def test_what_was_left_out_is_printed(capsys, tmp_path, model, images) -> None:
    rng = np.random.default_rng(1)
    for i in range(98):
        (images / f"more-{i}.png").write_bytes(encoded_picture(rng, width=6, height=6))
    (images / "0.png").write_bytes(b"no picture")
    flags = ["--model-id", model, "--images", images, "--output-dir", tmp_path / "out", "--image-size", 28]
    code, out, _ = _run(capsys, *flags, "--device", "cpu", "--no-track")
    assert code == 0
    assert "left out, cannot be read: 0.png" in out
    assert "pictures per second, " in out
    assert len(Features(tmp_path / "out")) == 100


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"--model-id": "empty"}, "empty"),
        ({"--model-id": "nowhere"}, "nowhere"),
        ({"--images": "empty"}, "empty: neither parquet files nor pictures"),
        ({"--images": "nowhere"}, "nowhere: no such pictures"),
        ({"--images": "empty.jsonl"}, "empty.jsonl"),
        ({"--image-size": "50"}, "image_size: 50 is not a multiple of 28"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(capsys, tmp_path, model, images, changes, named) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    flags = {"--model-id": model, "--images": images, "--output-dir": tmp_path / "out", "--device": "cpu"}
    flags |= {flag: value if value.isdigit() else tmp_path / value for flag, value in changes.items()}
    code, _, err = _run(capsys, *(word for pair in flags.items() for word in pair), "--no-track")
    assert code == 1
    assert err.count("\n") == 1
    assert named in err


def test_wrong_usage_is_one_line_and_exit_code_2(capsys) -> None:
    for arguments, named in ((["--images", "x"], "--model-id"), (["--limit", "many"], "--limit")):
        code, _, err = _run(capsys, *arguments)
        assert code == 2
        assert err.count("\n") == 1
        assert named in err
