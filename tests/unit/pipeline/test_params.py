"""params.yaml and studies: what is accepted, and the one line for everything else."""

import os
import re
from pathlib import Path

import pytest

from subspacelab.core.settings import validate
from subspacelab.pipeline.params import read_params, read_study, read_yaml
from subspacelab.rotation.config import CompareRotationsConfig as CompareRotations
from subspacelab.rotation.config import DecomposeConfig as Decompose

TOP = "study: s\nrank: 8\nseed: 1\nthreads: 2\n"
SECTIONS = "decompose:\n  rank: null\n  method: auto\ncompare_rotations:\n  k: 4\n  modules: {}\n  null_draws: 2\n"
STUDY = "checkpoints:\n  base: train\ndecompose:\n  device: cpu\n"
LAUGHS = "l0: &l0 {x: 1}\n" + "".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}\n" for i in range(1, 30))
"""A billion laughs, many times over."""


def written(tmp_path, params=TOP + SECTIONS, study=STUDY):
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "s.yaml").write_text(study)
    return read_params(tmp_path / "params.yaml", tmp_path)


def test_a_section_is_the_union_of_params_and_study(tmp_path):
    params = written(tmp_path)
    assert params.section("decompose", Decompose) == Decompose(rank=None, method="auto", device="cpu")
    assert params.section("compare_rotations", CompareRotations).k == 4
    assert params.study.reference("base") == "train"
    assert (params.common.rank, params.common.seed, params.common.threads) == (8, 1, 2)


def extended(tmp_path, study):
    (tmp_path / "demo.yaml").write_text(
        "checkpoints: {base: train}\nscenes: {rows: 8}\ncorpus: {people: 3, rounds: 2}\n"
    )
    (tmp_path / "s.yaml").write_text(study)
    return read_study("s", tmp_path)


def test_a_study_takes_the_sections_that_it_leaves_empty_from_demo(tmp_path):
    study = extended(
        tmp_path, "extends: demo\ncheckpoints: {base: org/name}\nscenes:\ncorpus: {people: 5}\nnorms: {}\n"
    )
    assert study.checkpoints == {"base": "org/name"}
    assert study.sections == {"scenes": {"rows": 8}, "corpus": {"people": 5}, "norms": {}}
    assert [path.name for path in study.files] == ["s.yaml", "demo.yaml"]
    assert read_study("demo", tmp_path).files == (tmp_path / "demo.yaml",)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("extends: smoke\n", "s.yaml: extends: demo is all that another study may extend, got 'smoke'"),
        ("extends: demo\ncheckpoints:\nscenes:\n", "s.yaml: no section 'corpus'; write 'corpus:' without a value"),
        ("checkpoints: {}\nscenes:\n", "s.yaml.scenes"),
    ],
)
def test_what_a_study_cannot_extend_is_one_line(tmp_path, study, said):
    with pytest.raises(ValueError, match=re.escape(said)) as e:
        extended(tmp_path, study)
    assert "\n" not in str(e.value)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in ("/dev/zero", tmp_path, tmp_path / "pipe.yaml"):
        with pytest.raises(ValueError, match=f"^{path} is no file; put one in its place$"):
            read_yaml(Path(path))


def test_bytes_that_are_no_text_are_told_by_their_setting():
    with pytest.raises(ValueError, match=r"build: text='\\udc81.txt' is not valid text in this locale; rename it"):
        validate(dict[str, str], {"rank": "8", "text": "\udc81.txt"}, "build")


def test_exponents_without_a_point_are_numbers():
    assert validate(float, 1e-3, "x") == 0.001


@pytest.mark.parametrize(
    ("params", "study", "names"),
    [
        (TOP.replace("rank: 8", "rank: true"), STUDY, ["rank", "True"]),
        (TOP.replace("rank: 8", "rank: 0"), STUDY, ["params.yaml.rank: must be greater than or equal to 1, got 0"]),
        (TOP.replace("rank: 8\n", ""), STUDY, ["rank"]),
        (TOP.replace("study: s", "study: t"), STUDY, ["'t'", "['params', 's']"]),
        (TOP + "decompose: 3\n", STUDY, ["decompose", "3"]),
        (TOP + "decompose: [", STUDY, ["params.yaml", "line"]),
        ("- a\n", STUDY, ["params.yaml", "list"]),
        (TOP.replace("seed: 1", "seed: -1"), STUDY, ["params.yaml.seed: must be greater than or equal to 0, got -1"]),
        (
            TOP.replace("seed: 1", f"seed: {2**64}"),
            STUDY,
            ["params.yaml.seed: must be less than or equal to 4294967295, got"],
        ),
        (TOP.replace("seed: 1", f"seed: {'9' * 5000}"), STUDY, ["params.yaml", "digits"]),
        (TOP + "? [a]\n: 1\n", STUDY, ["params.yaml", "tuple"]),
        (TOP + "1: 2\nx: 3\n", STUDY, ["params.yaml.1", "got 2"]),
        (TOP + "a: !!set {x}\n", STUDY, ["params.yaml.a"]),
        (TOP + "a: &a [1]\nb: *a\n", STUDY, ["params.yaml", "alias *a in line 6; write its value out"]),
        (TOP + LAUGHS, STUDY, ["params.yaml", "alias *l0"]),
        (TOP, LAUGHS, ["s.yaml", "alias *l0"]),
        (TOP + f"a: {'[' * 10000}", STUDY, ["params.yaml", "nested more than 50 deep"]),
        (
            TOP.replace("threads: 2", "threads: 100000"),
            STUDY,
            ["params.yaml.threads: must be less than or equal to 512, got 100000"],
        ),
        (TOP, "checkpoints: [a]\n", ["s.yaml: checkpoints"]),
    ],
)
def test_bad_files_are_one_line_that_names_the_key(tmp_path, params, study, names):
    with pytest.raises(ValueError) as e:
        written(tmp_path, params, study)
    assert "\n" not in str(e.value)
    assert all(name in str(e.value) for name in names), str(e.value)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("decompose:\n  rank: null\n  method: auto\n  nosuch: 1\n", ["decompose.nosuch", "allowed", "method"]),
        ("decompose:\n  rank: 1.5\n  method: auto\n", ["decompose.rank", "1.5"]),
        ("decompose:\n  rank: 0\n  method: auto\n", ["decompose.rank: must be greater than or equal to 1, got 0"]),
        ("decompose:\n  rank: null\n  method: auto\n  device: cpu\n", ["decompose.device", "study 's'", "keep one"]),
    ],
)
def test_bad_sections_are_one_line_that_names_the_key(tmp_path, section, names):
    with pytest.raises(ValueError) as e:
        written(tmp_path, TOP + section).section("decompose", Decompose)
    assert "\n" not in str(e.value).strip()
    assert all(name in str(e.value) for name in names), str(e.value)


def test_a_checkpoint_the_study_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="study 's' has no checkpoint 'rl_stage1'; it has \\['base'\\]"):
        written(tmp_path).study.reference("rl_stage1")
