"""bx_ratio.png: how deep in the null space each method's B lies, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from subspacelab.nullspace.stats import Verification
from subspacelab.reports.figures import GREY, colour_and_marker, count_along, drawn_name, log_if_positive, open_figure


def draw_bx_ratio(path: Path, found: Sequence[Verification], built: Verification) -> Path:
    """The ratio over the layers for each method, between the random baseline and the optimum, on the base's inputs.

    `built` is any of the adapters before its training, when a layer's inputs are the base's.
    """
    with open_figure(path, (7.5, 4.4)) as figure:
        axes = figure.subplots()
        for i, verification in enumerate(found):
            curve = [s.base_BX_ratio for s in verification.stats]
            colour, marker = colour_and_marker(i)
            axes.plot(curve, label=drawn_name(verification.summary.method), linewidth=1, color=colour, marker=marker)
        axes.plot([s.BX_ratio_random for s in built.stats], color=GREY, linestyle=":", label="a random B")
        optimum = [s.BX_ratio_optimum for s in built.stats]
        axes.plot(optimum, color="#000000", linestyle="--", linewidth=1, label="optimum")
        log_if_positive(axes, [s.base_BX_ratio for v in found for s in v.stats] + optimum, plain=True)
        axes.set(
            xlabel="layer with an adapter, in the model's order",
            ylabel="null-space ratio ‖BX‖ / ‖X‖ on the base's inputs",
        )
        count_along(axes)
        figure.legend(loc="outside lower center", ncols=4)
    return path
