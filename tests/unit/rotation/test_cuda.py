from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.unit.rotation.chains import chain_tensors, decompose_chain

from subspacelab.rotation.chain import open_chain
from subspacelab.rotation.compare import measure_chain
from subspacelab.rotation.groups import make_groups

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_cuda_gives_the_table_of_the_cpu(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    on_cuda = decompose_chain(tmp_path, chain_tensors(), device="cuda")
    tables = []
    for place, device in ((folders, "cpu"), (on_cuda, "cuda")):
        chain = open_chain(*place)
        tables.append(measure_chain(chain, make_groups(chain.names), k=8, device=device))
    # Both work in float64 on factors that are float32: 1e-7, which a narrow spectral gap makes some 1e-5.
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-3, atol=1e-6)
