"""The statistics file: a round trip, exactly the keys, and whatever may be wrong with it in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.nullspace.verifications import trained_of

from subspacelab.core.files import read_json
from subspacelab.nullspace.verification import KEYS, read_stats, write_stats


def test_what_is_written_comes_back_and_has_exactly_the_keys(tmp_path: Path) -> None:
    found = trained_of(bound=None, bound_left=None, base_bound=None, base_bound_left=None)
    write_stats(tmp_path / "stats.json", found)
    assert read_stats(tmp_path / "stats.json") == found
    assert set(read_json(tmp_path / "stats.json")) == set(KEYS)
    assert read_json(tmp_path / "stats.json")["num_layers"] == 3


def broken(change: str) -> Any:
    content = json.loads(json.dumps(read_json(Path("good.json"))))
    if change == "no summary":
        del content["summary"]
    elif change == "list":
        content = [content]
    elif change == "unknown key":
        content["extra"] = 1
    elif change == "unknown key of the summary":
        content["summary"]["extra"] = 1
    elif change == "layer without BX_ratio":
        del content["stats"][1]["BX_ratio"]
    elif change == "text for a number":
        content["stats"][2]["A_weight_norm"] = "much"
    elif change == "NaN":
        content["stats"][0]["X_norm"] = float("nan")
    elif change == "unknown grade":
        content["verdicts"][0]["grade"] = "splendid"
    elif change == "stats are no list":
        content["stats"] = {"a": 1}
    elif change == "layer is no object":
        content["stats"][0] = 7
    elif change == "another number of layers":
        content["num_layers"] = 4
    elif change == "no layers":
        content |= {"stats": [], "num_layers": 0}
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no summary", "summary: Field required"),
        ("list", "got list"),
        ("unknown key", "extra: no such key"),
        ("unknown key of the summary", "summary.extra"),
        ("layer without BX_ratio", "stats.1.BX_ratio"),
        ("text for a number", "stats.2.A_weight_norm"),
        ("NaN", "stats.0.X_norm"),
        ("unknown grade", "verdicts.0.grade"),
        ("stats are no list", "stats.a: no such key"),
        ("layer is no object", "stats.0: Input should be an object"),
        ("another number of layers", "num_layers is 4, stats has 3"),
        ("no layers", "num_layers is 0"),
    ],
)
def test_malformed_files_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stats(Path("good.json"), trained_of())
    Path("bad.json").write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=said.replace(".", r"\.")) as e:
        read_stats(Path("bad.json"))
    assert "bad.json" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_file_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"stats": [')
    with pytest.raises(ValueError, match="not valid JSON"):
        read_stats(tmp_path / "half.json")
    with pytest.raises(ValueError, match="no such file"):
        read_stats(tmp_path / "none.json")
