"""Feature caches and pictures for the tests of lowrank, without a model."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from subspacelab.checkpoints import write_tensors
from subspacelab.core.files import write_json
from subspacelab.linalg.subspaces import random_orthonormal
from subspacelab.lowrank.features import INDEX, META, TENSOR, FeatureMeta, Features, shard_name
from subspacelab.lowrank.kept_pictures import pictures_name

CELL = 28  # pixels per side of a merged token


def write_random_cache(
    folder: Path,
    *,
    count: int = 24,
    tokens: int = 16,
    dim: int = 12,
    seed: int = 0,
    per_shard: int = 8,
    pictures: bool = False,
) -> Features:
    """A float32 cache of `random_features`; with `pictures` also small JPEGs, each with a box, as `lowrank cache`."""
    side = int(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"tokens: {tokens} is not a square number")
    size = side * CELL
    shards = random_features(count, tokens, dim, seed).split(per_shard)
    write_cache(folder, list(shards), image_size=size)
    if pictures:
        rng = np.random.default_rng(seed)
        for number, shard in enumerate(shards):
            path = folder / pictures_name(shard_name(number))
            pd.DataFrame([_picture_row(rng, size) for _ in shard]).to_parquet(path, index=False)
    return Features(folder)


def random_features(count: int, tokens: int, dim: int, seed: int = 0) -> Tensor:
    """Features of decaying spectrum in a basis that all pictures share, and noise of each picture's own."""
    generator = torch.Generator().manual_seed(seed)
    basis = random_orthonormal(dim, dim, generator).float()
    spectrum = 3 * 0.7 ** torch.arange(dim)
    common = torch.randn(count, tokens, dim, generator=generator) * spectrum @ basis.T
    return common + 0.05 * torch.randn(count, tokens, dim, generator=generator)


def write_cache(folder: Path, shards: list[Tensor], *, image_size: int = 112) -> None:
    """Shards [n, tokens, dim] of one dtype with index.parquet and meta.json, as `Features` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for number, features in enumerate(shards):
        write_tensors(folder / shard_name(number), {TENSOR: features})
        places += [(shard_name(number), offset) for offset in range(len(features))]
    names = [f"picture-{row:04d}" for row in range(len(places))]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    rows = [(row, names[row], digests[row], *place) for row, place in enumerate(places)]
    index = pd.DataFrame(rows, columns=["row", "dataset_id", "sha256", "shard", "offset"])
    index.to_parquet(folder / INDEX, index=False)
    _, tokens, dim = shards[0].shape
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[shards[0].dtype]
    meta = FeatureMeta("random", None, image_size, tokens, dim, dtype, len(places), [])
    write_json(folder / META, meta.as_json())


def encoded_picture(rng: np.random.Generator, *, width: int = 40, height: int = 30, format: str = "PNG") -> bytes:
    """The bytes of a picture of random pixels."""
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, format=format)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of pictures of random pixels, 000.png and on."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(encoded_picture(rng))
    return folder


def _picture_row(rng: np.random.Generator, size: int) -> dict[str, object]:
    x, y = rng.uniform(0, size / 2, 2)
    box = [float(x), float(y), size / 4, size / 3]
    return {"image": encoded_picture(rng, width=size, height=size, format="JPEG"), "bbox": box}
