"""What is typed behind -S becomes experiments, each with a name that git takes."""

import subprocess

import pytest

from subspacelab.pipeline.sweep import combine, require_known, split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("64,128", ["64", "128"]),
        ("[lora,corda]", ["[lora,corda]"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{a: [1,2], b: 3},null", ["{a: [1,2], b: 3}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("5e-4, 1e-3", ["5e-4", "1e-3"]),
        ("']',x", ["']'", "x"]),
    ],
)
def test_commas_within_brackets_and_quotes_belong_to_the_value(text, values):
    assert split_values(text) == values


def test_every_combination_comes_once_the_last_key_fastest():
    trials = combine(["rank=64,128", "train_lowrank.lr=5e-4,1e-3", "seed=1"])
    assert [trial.name for trial in trials] == [
        "rank=64,train_lowrank.lr=5e-4,seed=1",
        "rank=64,train_lowrank.lr=1e-3,seed=1",
        "rank=128,train_lowrank.lr=5e-4,seed=1",
        "rank=128,train_lowrank.lr=1e-3,seed=1",
    ]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "nothing to sweep"),
        (["rank"], "'rank' is not of the form"),
        (["rank="], "'rank=' is not of the form"),
        (["=3"], "'=3' is not of the form"),
        (["rank=1,,2"], "'rank=1,,2' is not of the form"),
        (["rank=1,1"], "holds a value twice"),
        (["rank=1", "rank=2"], "-S rank is given twice"),
        (["a=[1,2"], "does not close"),
        (["a=1]"], "does not close"),
    ],
)
def test_what_is_not_a_sweep_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        combine(given)


NAMED = [
    "rank=64",
    "build_adapter.methods=[lora,corda]",
    "build_adapter.methods=[lora-corda]",
    "pipelines/studies/smoke.yaml:train_lowrank.epochs=3",
    "+new=1",
    "a='x y'",
    "a=1..2",
    "a=x.lock",
    "a=x.",
    "a=~^:?*\\",
    "a=é",
    f"a={'x' * 300}",
]


def test_names_are_distinct_and_git_takes_them():
    names = [combine([text])[0].name for text in NAMED]
    assert len(set(names)) == len(names)
    for name in names:
        subprocess.run(["git", "check-ref-format", f"refs/exps/ab/cdef/{name}"], check=True)
        assert "/" not in name
        assert len(name) < 120


def test_plain_values_stand_in_the_name_as_typed_and_others_recognisably():
    assert combine(["rank=64"])[0].name == "rank=64"
    (study,) = combine(["pipelines/studies/smoke.yaml:train_lowrank.epochs=3"])
    assert study.name.startswith("train_lowrank.epochs=3-")


def test_a_key_that_params_yaml_lacks_is_named_with_what_there_is():
    params = {"rank": 8, "train": {"lr": 0.1}}
    for known in ("rank=1", "train.lr=1", "train={lr: 1}", "+train.new=1", "pipelines/studies/x.yaml:a=1"):
        require_known(combine([known]), params)
    with pytest.raises(ValueError, match=r"train\.rate.*no 'rate'.*\['lr'\]"):
        require_known(combine(["train.rate=1"]), params)
    with pytest.raises(ValueError, match=r"rank\.of.*nothing below"):
        require_known(combine(["rank.of=1"]), params)
