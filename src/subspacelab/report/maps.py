"""Channel maps: a picture's features and their approximations on the picture plane, channel by channel."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int16
from numpy import ndarray
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from subspacelab.linalg.token_svd import project, token_svd
from subspacelab.lowrank.baselines import open_evaluation
from subspacelab.lowrank.config import RANKS
from subspacelab.lowrank.features import META, Features
from subspacelab.lowrank.kept_pictures import read_picture
from subspacelab.report.figures import template
from subspacelab.report.page import Choice, Figure, text_in_figure

FEATURES, MODELS = "data/features", "data/lowrank/results"
PIXELS = 224
"""Side of a picture on the page, in pixels."""
COLUMNS = 4
LARGEST_CODE = 32000
SHOWN = ("features", "errors")
ABOUT = (
    "Each map is one channel of a test picture's tokens on its plane. Errors are approximation minus features, on one "
    "scale for all methods. The slider of ranks moves the SVD alone: networks have the rank they were trained for"
)


@dataclass(frozen=True)
class PictureMaps:
    """One picture's features and their approximations."""

    name: str
    """Its name in the data set."""
    jpeg: str
    """The picture as a data URI."""
    original: Float[ndarray, "channels side side"]
    """The features."""
    networks: dict[str, Float[ndarray, "channels side side"]]
    """Architecture -> approximation, at the rank of its training."""
    svd: dict[int, Float[ndarray, "channels side side"]]
    """Rank -> approximation."""


@torch.no_grad()
def channel_maps(root: Path, *, pictures: int, channels: int) -> Figure | None:
    """The figure of the first test pictures' channel maps, with sliders over channels, pictures and ranks.

    None without data/features or trained networks; ValueError for a damaged cache or network.
    """
    folder, models = root / FEATURES, root / MODELS
    if not (folder / META).is_file() or not any(models.glob("*/best_model.json")):
        return None
    features = Features(folder)
    evaluation = open_evaluation(features, models, (), None, "cpu")
    channels = min(channels, features.meta.dim)
    ranks = sorted({*(r for r in RANKS if r < features.meta.full_rank), evaluation.rank})
    found = []
    for row in evaluation.rows[:pictures]:
        x = evaluation.normalisation.apply(features.read([row]))
        u = token_svd(x).U
        picture = read_picture(features, row)

        def maps(y: Float[Tensor, "one tokens dim"]) -> Float[ndarray, "channels side side"]:
            side = features.meta.side
            return y[0, :, :channels].double().T.reshape(-1, side, side).numpy()

        networks = {name: maps(trained.network(x)[2]) for name, trained in evaluation.models.items()}
        svd = {rank: maps(project(x, u[..., :rank])) for rank in ranks}
        found.append(PictureMaps(picture.dataset_id, _jpeg(picture.pixels), maps(x), networks, svd))
    return draw(found, evaluation.rank, evaluation.normalisation.kind)


def draw(found: Sequence[PictureMaps], rank: int, kind: str) -> Figure:
    """The figure: the picture, its features, the SVD at the rank of the slider, each network."""
    unit = _unit(found)
    networks, ranks = list(found[0].networks), list(found[0].svd)
    titles = ["picture", "features", "SVD", *map(text_in_figure, networks)]
    rows = math.ceil(len(titles) / COLUMNS)
    figure = make_subplots(rows, COLUMNS, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.06)
    figure.add_trace(go.Image(source=found[0].jpeg, hoverinfo="skip"), 1, 1)
    start = ranks.index(rank)
    hover = f"%{{z}} x {unit:g}<extra></extra>"
    for i, codes in enumerate(_first(found[0], ranks[start], unit)):
        axis = "coloraxis" if i == 0 else "coloraxis2"
        figure.add_trace(
            go.Heatmap(z=codes, coloraxis=axis, hovertemplate=hover), (i + 1) // COLUMNS + 1, (i + 1) % COLUMNS + 1
        )
    scale, spread = (
        "Viridis",
        f"in {unit:g}" + {"rms": " of the features' RMS", "layernorm": " of a token's deviation"}.get(kind, ""),
    )
    figure.update_layout(
        template=template(),
        margin={"t": 54, "b": 50},
        coloraxis=_axis(scale, spread, 0.0),
        coloraxis2=_axis(scale, spread, 0.55),
    )
    figure.update_layout(_limits(found[0].original[0] / unit, "features"))
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, scaleanchor="x", constrain="domain", autorange="reversed")
    for i in range(2, len(titles) + 1):  # each panel is a square of its own
        figure.update_yaxes(scaleanchor=f"x{i}", row=(i - 1) // COLUMNS + 1, col=(i - 1) % COLUMNS + 1)
    figure.update_annotations(font_size=11)
    return Figure(
        "lowrank-maps",
        "Channel maps",
        f"{ABOUT} ({rank}).",
        figure,
        list(_frames(found, unit)),
        [
            Choice("channel", "channel", [str(c) for c in range(len(found[0].original))], slider=True),
            Choice("picture", "picture", [maps.name for maps in found], slider=True),
            Choice("rank", "rank of the SVD", [str(r) for r in ranks], slider=True, start=start),
            Choice("shown", "show", SHOWN),
        ],
        ["p{picture}", "{picture}|{channel}|{shown}", "{picture}|{channel}|{shown}|{rank}"],
        shape="maps",
    )  # fmt: skip


def _frames(found: Sequence[PictureMaps], unit: float) -> Iterator[dict[str, Any]]:
    """Frames by indices: `p0` is a picture, `0|3|1` its features and networks, `0|3|1|2` its SVD at a rank."""
    for p, maps in enumerate(found):
        yield {"name": f"p{p}", "data": [{"source": maps.jpeg, "type": "image"}], "traces": [0]}
        for c, original in enumerate(maps.original):
            for s, kind in enumerate(SHOWN):
                base = 0.0 if kind == "features" else original
                layout = _limits(original / unit, "features")
                if kind == "errors":
                    layout |= _limits(
                        np.stack([m[c] - base for m in (*maps.networks.values(), maps.svd[max(maps.svd)])]) / unit, kind
                    )
                data = [_trace(original, unit), *(_trace(m[c] - base, unit) for m in maps.networks.values())]
                traces = [1, *range(3, 3 + len(maps.networks))]
                yield {"name": f"{p}|{c}|{s}", "data": data, "traces": traces, "layout": layout}
                for r, approximation in enumerate(maps.svd.values()):
                    yield {"name": f"{p}|{c}|{s}|{r}", "data": [_trace(approximation[c] - base, unit)], "traces": [2]}


def _first(maps: PictureMaps, rank: int, unit: float) -> list[Int16[ndarray, "side side"]]:
    """Channel 0: features, the SVD, the networks."""
    return [encode(m[0], unit) for m in (maps.original, maps.svd[rank], *maps.networks.values())]


def encode(values: Float[ndarray, "side side"], unit: float) -> Int16[ndarray, "side side"]:
    """Values as multiples of `unit`, two bytes each, because the page holds several hundred thousand of them."""
    return np.clip(np.round(values / unit), -LARGEST_CODE, LARGEST_CODE).astype(np.int16)


def _trace(values: Float[ndarray, "side side"], unit: float) -> dict[str, Any]:
    """A map in a frame, in the base64 form that plotly.js reads as an array."""
    code = encode(values, unit)
    shape = ", ".join(map(str, code.shape))
    return {
        "type": "heatmap",
        "z": {"dtype": "i2", "bdata": base64.b64encode(code.astype("<i2").tobytes()).decode(), "shape": shape},
    }


def _unit(found: Sequence[PictureMaps]) -> float:
    """The smallest power of ten with which all values fit into 16 bits."""
    largest = max(
        float(np.abs(m).max()) for maps in found for m in (maps.original, *maps.networks.values(), *maps.svd.values())
    )
    if not math.isfinite(largest):
        raise ValueError(f"{FEATURES}: NaN or infinity in the features or an approximation; cache or train again")
    return 10.0 ** math.ceil(math.log10(max(largest, 1e-300) * 2 / LARGEST_CODE))


def _axis(scale: str, title: str, x: float) -> dict[str, object]:
    bar = {"orientation": "h", "x": x, "xanchor": "left", "y": -0.02, "yanchor": "top", "len": 0.42, "thickness": 9}
    return {"colorscale": scale, "colorbar": bar | {"title": {"text": title, "side": "bottom", "font": {"size": 11}}}}


def _limits(codes: Float[ndarray, "*any"], kind: str) -> dict[str, object]:
    """Colour scales: for maps the range of the features, for errors one around 0."""
    if kind == "errors":
        limit = max(1.0, float(np.abs(codes).max()))
        return {"coloraxis2": {"cmin": -limit, "cmax": limit, "colorscale": "RdBu"}}
    own = {"cmin": float(codes.min()), "cmax": float(max(codes.max(), codes.min() + 1)), "colorscale": "Viridis"}
    return {"coloraxis": own, "coloraxis2": own}


def _jpeg(pixels: ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR).save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
