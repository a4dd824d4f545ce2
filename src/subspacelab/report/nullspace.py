"""What the page says of nullspace: where adapters look, what they learned and what is still known."""

from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.report.figures import Line, frames_of, lines
from subspacelab.report.page import Choice, Figure, Headline, Section, Table
from subspacelab.report.results import Results

FOLDER = "reports/nullspace"
QUESTION = "Does an adapter whose down-projection ignores the directions of old text forget less of it?"
STAGES = ("build_adapter", "train_adapter", "verify_adapter", "compare_stats")
RECALLS = {
    "recall": "old facts recalled exactly",
    "recall_begun": "answers that begin right",
    "recall_calibrated": "recalled exactly, people asked about in the calibration",
    "recall_uncalibrated": "recalled exactly, others",
    "geometric_mean": "geometric mean of recall and task",
    "drift": "drift of the hidden states on old text",
}
RATIOS = {
    "BX_ratio": "share of the inputs that B sees (BX_ratio)",
    "base_BX_ratio": "the same on the frozen base's inputs",
    "DeltaX_ratio": "change of the output over the input (DeltaX_ratio)",
    "adapter_contribution": "share of the adapter in the output",
}
BASE = "base"


class Verified(BaseModel):
    """What is read of a file of verify/."""

    stats: list[dict[str, Any]] = []


def section(results: Results) -> Section:
    """The section of nullspace, of the files that are there."""
    metrics = results.json(f"{FOLDER}/metrics.json", dict[str, float]) or {}
    knowledge = results.table(f"{FOLDER}/knowledge.csv", text=("method",), numbers=("task_mean", "recall_mean"))
    trainings = results.table(f"{FOLDER}/knowledge_trainings.csv", text=("method",))
    stats = results.table(f"{FOLDER}/stats.csv", text=("method", "layer", "metric", "verdict"))
    verified = _verified(results)
    tables = {
        "Differences of the methods": results.table(f"{FOLDER}/knowledge_differences.csv", text=("method",)),
        "Recall at equal task": results.table(f"{FOLDER}/knowledge_equal_task.csv", text=("method",)),
        "Knowledge by method and rate": knowledge,
        "Every training": trainings,
        "Every layer, before and after training, with verdicts": stats,
        "Every layer of every adapter": _layers(verified),
    }
    blocks: list[Figure | Table] = []
    if knowledge is not None and len(knowledge):
        blocks.append(_pareto(knowledge))
    if verified:
        blocks.append(_ratios(verified))
    main = {"Knowledge by method and rate": [c for c in (knowledge if knowledge is not None else []) if not c.endswith("_std")],
            "Every layer of every adapter": ["adapter", "layer", *RATIOS, "BX_ratio_random", "BX_ratio_optimum"]}  # fmt: skip
    blocks += [Table(title, table, main.get(title, ()), folded=True) for title, table in tables.items() if table is not None and len(table)]
    return Section("nullspace", QUESTION, _sentences(metrics, knowledge, stats), _headlines(metrics), blocks)


def _methods(metrics: dict[str, float]) -> list[str]:
    return [name.removesuffix("_recall") for name in metrics if name.endswith("_recall")]


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    found = []
    for name in _methods(metrics):
        task = metrics.get(f"{name}_task")
        found.append(Headline(f"facts recalled, {name}", f"{metrics[f'{name}_recall']:.3f}", "" if task is None else f"sums solved: {task:.3f}"))
        if f"{name}_BX_ratio" in metrics:
            random = f"random B: {metrics['random_BX_ratio']:.3f}" if "random_BX_ratio" in metrics else ""
            found.append(Headline(f"BX_ratio after training, {name}", f"{metrics[f'{name}_BX_ratio']:.3f}", random))
    return found


def _sentences(metrics: dict[str, float], knowledge: pd.DataFrame | None, stats: pd.DataFrame | None) -> list[str]:
    found = []
    for name in _methods(metrics):
        solved = f" and solves {100 * metrics[f'{name}_task']:.0f} % of the new sums" if f"{name}_task" in metrics else ""
        found.append(f"After its training {name} recalls {100 * metrics[f'{name}_recall']:.0f} % of the old facts{solved}.")
    if knowledge is not None and "num_seeds" in knowledge:
        seeds = pd.to_numeric(knowledge.loc[knowledge["method"] != BASE, "num_seeds"], errors="coerce").max()
        if seeds == 1:
            found.append("Each method was trained once here: differences of single trainings are no finding.")
        elif seeds > 1:
            found.append(f"Means over {seeds:.0f} seeds; compare recalls at equal task, since what learns nothing forgets nothing.")
    if stats is not None and len(failed := stats[stats["verdict"] == "fail"]):
        found.append(f"{len(failed)} of {len(stats)} expectations on single layers fail: the table of layers names them.")
    return found


def _pareto(knowledge: pd.DataFrame) -> Figure:
    """Old facts against new problems, a point for each rate of each method."""
    names = list(knowledge["method"].unique())
    views = {}
    for measure, words in RECALLS.items():
        if f"{measure}_mean" in knowledge:
            views[words] = [_points(knowledge[knowledge["method"] == name], name, measure) for name in names]
    first = next(iter(views))
    return Figure(
        "nullspace-pareto",
        "What is still known against what was learned",
        "A point for each learning rate; bars: standard deviation over the seeds. Upper right is better. The base has learned nothing and forgotten nothing.",
        lines(views[first], "new problems solved", first),
        frames_of(views),
        [Choice("measure", "measure", list(views))],
        ["{measure}"],
        free=True,
    )


def _points(rows: pd.DataFrame, name: str, measure: str) -> Line:
    rows = rows.sort_values("task_mean")

    def deviation(column: str) -> list[float] | None:
        given = pd.to_numeric(rows[column], errors="coerce") if column in rows else None
        return given.fillna(0).tolist() if given is not None and given.gt(0).any() else None

    rate = rows["rate"].tolist() if "rate" in rows else [None] * len(rows)
    text = ["" if each is None or each != each else f"rate {each:g}" for each in pd.to_numeric(pd.Series(rate), errors="coerce")]
    y = rows[f"{measure}_mean"].tolist()
    return Line(name, rows["task_mean"].tolist(), y, name, int(name == BASE), error=deviation(f"{measure}_std"),
                error_x=deviation("task_std"), text=text)  # fmt: skip


def _verified(results: Results) -> dict[str, pd.DataFrame]:
    """Adapter and state, such as `lora-trained`, to a row for each layer."""
    found = {}
    for path in results.find(f"{FOLDER}/verify/*.json"):
        content = results.json(path, Verified) or Verified()
        table = pd.DataFrame(content.stats)
        if len(table) and "layer" in table:
            found[path.rpartition("/")[2].removesuffix(".json")] = table
    return found


def _layers(verified: dict[str, pd.DataFrame]) -> pd.DataFrame | None:
    return pd.concat([table.assign(adapter=name) for name, table in verified.items()]) if verified else None


def _ratios(verified: dict[str, pd.DataFrame]) -> Figure:
    """Ratios of each adapter over its layers, beside a random B and the optimum."""
    first = next(iter(verified.values()))
    views = {}
    for measure, words in RATIOS.items():
        if all(measure in table and pd.api.types.is_numeric_dtype(table[measure]) for table in verified.values()):
            drawn = []
            for name, table in verified.items():
                before = name.endswith("-init")
                layers = _short(table["layer"])
                drawn.append(Line(name, layers, table[measure].tolist(), name.rpartition("-")[0], dash="dot" if before else "solid"))
            layers = _short(first["layer"])
            for control, dash in {"BX_ratio_random": "dash", "BX_ratio_optimum": "dashdot"}.items():
                y = first[control].tolist() if control in first and "BX_ratio" in measure else [None] * len(first)
                words = {"BX_ratio_random": "random B", "BX_ratio_optimum": "the least possible"}[control]
                drawn.append(Line(words, layers, y, control, 1, dash=dash, mode="lines"))
            views[words] = drawn
    first = next(iter(views))
    return Figure(
        "nullspace-ratios",
        "Every adapted layer",
        "Dotted: as built. Solid: after training. Controls: a random B of the same rank, and the least share that any B of this rank can see.",
        lines(views[first], "", first),
        frames_of(views),
        [Choice("measure", "measure", list(views))],
        ["{measure}"],
        free=True,
    )


def _short(layers: pd.Series) -> list[str]:
    """`model.layers.0.self_attn.q_proj` as `0.q_proj`, where that tells them apart."""
    names = [str(name) for name in layers]
    short = [".".join(part for part in name.split(".") if part.isdigit() or part == name.split(".")[-1]) for name in names]
    return short if len(set(short)) == len(names) else names
