"""The page's section on the checkpoints: each trained model learned its task."""

import pandas as pd

from subspacelab.report.figures import Line, lines
from subspacelab.report.page import Figure, Headline, Section, Table
from subspacelab.report.results import Results

FOLDER = "reports/checkpoints"
QUESTION = "Did the models that the pipeline trains learn their tasks?"
CHAIN = ("base", "rl_stage1", "rl_stage2")
STAGES = ("scenes", "corpus", *(f"checkpoint_{name}" for name in (*CHAIN, "llm")), "compare_checkpoints")
Values = dict[str, float | None]


def section(results: Results) -> Section:
    """The section on the checkpoints, from the files that exist."""
    metrics = results.metrics(FOLDER)
    paths = [path for path in results.find(f"{FOLDER}/*.json") if not path.endswith("/metrics.json")]
    found = {path.rpartition("/")[2].removesuffix(".json"): results.json(path, Values) or {} for path in paths}
    blocks: list[Figure | Table] = []
    chain = [name for name in CHAIN if found.get(name, {}).get("mean_iou") is not None]
    if chain:
        blocks.append(_iou(chain, found))
    if found:
        table = pd.DataFrame([{"checkpoint": name, **values} for name, values in found.items()])
        blocks.append(
            Table(
                "What each checkpoint can do",
                table,
                note="_se: standard error over the held-out pictures or facts.",
                folded=True,
            )
        )
    return Section("checkpoints", QUESTION, _sentences(metrics), _headlines(metrics), blocks)


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    beside = (
        f"best constant box: {metrics['constant_iou']:.3f}"
        if "constant_iou" in metrics
        else "mean over held-out pictures"
    )
    boxes = [
        Headline(f"IoU, {name}", f"{metrics[f'{name}_iou']:.3f}", beside, f"{name}_iou")
        for name in CHAIN
        if f"{name}_iou" in metrics
    ]
    if "llm_recall" in metrics:
        boxes.append(Headline("recall, llm", f"{metrics['llm_recall']:.3f}", "1: it knows every fact", "llm_recall"))
    return boxes


def _sentences(metrics: dict[str, float]) -> list[str]:
    chain = [metrics[f"{name}_iou"] for name in CHAIN if f"{name}_iou" in metrics]
    found = []
    if len(chain) > 1:
        how = "rises" if chain == sorted(chain) else "does not rise at every stage"
        found.append(
            f"The mean IoU of the boxes {how} along the chain: {', '.join(f'{value:.3f}' for value in chain)}."
        )
    if "llm_recall" in metrics:
        found.append(
            f"Before any adapter is trained, the language model recalls {metrics['llm_recall']:.1%} of its facts."
        )
    return found


def _iou(chain: list[str], found: dict[str, Values]) -> Figure:
    def column(name: str) -> list[float]:
        return [float(found[each].get(name) or 0) for each in chain]

    drawn = [
        Line("boxes by greedy decoding", chain, column("mean_iou"), "greedy", error=column("mean_iou_se")),
        Line("sampled boxes", chain, column("sampled_iou"), "sampled", error=column("sampled_iou_se")),
        Line(
            "best constant box",
            chain,
            column("constant_iou"),
            "constant",
            1,
            dash="dash",
            mode="lines",
            error=column("constant_iou_se"),
        ),
    ]
    figure = lines(
        [line for line in drawn if any(line.y)], "", "mean IoU on held-out pictures", yaxis_rangemode="tozero"
    )
    return Figure("checkpoints-iou", "IoU along the chain", "Bars: one standard error over the pictures.", figure)
