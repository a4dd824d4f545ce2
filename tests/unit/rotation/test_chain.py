import json
from pathlib import Path

import pytest
from tests.unit.rotation.chains import chain_tensors, decompose_chain

from subspacelab.rotation.chain import open_chain

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def test_all_weights_of_one_model_match(folders: tuple[Path, Path, Path]) -> None:
    chain = open_chain(*folders)
    assert not chain.unmatched
    assert set(chain.names) == set(chain.checkpoints[0].weights)
    assert chain.sources["stage2"] == {"reference": "rl_stage2", "revision": None}


def test_absent_and_reshaped_weights_are_listed(tmp_path: Path) -> None:
    base, stage1, stage2 = chain_tensors()
    del stage1[Q]
    stage2[UP] = stage2[UP][:, :40].contiguous()
    chain = open_chain(*decompose_chain(tmp_path, (base, stage1, stage2)))
    assert chain.unmatched == {Q: "absent in stage1", UP: "shapes differ: [64, 48], [64, 48], [64, 40]"}
    assert not {Q, UP} & set(chain.names)


def test_another_rank_is_listed(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, stage1, _ = decompose_chain(tmp_path, chain_tensors(), rank=8)
    with pytest.raises(ValueError, match=r"share no weight of one shape and rank .*ranks differ: 48, 8, 48") as e:
        open_chain(folders[0], stage1, folders[2])
    assert "\n" not in str(e.value)


def test_a_folder_that_is_none_is_named(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run 'subspacelab rotation decompose' first"):
        open_chain(folders[0], tmp_path, folders[2])


def test_folders_of_no_weights_share_none(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"weights": {}, "skipped": {}, "source": {}}))
    with pytest.raises(ValueError, match="share no weight"):
        open_chain(tmp_path, tmp_path, tmp_path)
