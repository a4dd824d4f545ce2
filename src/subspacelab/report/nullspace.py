"""The page's section on nullspace: directions of the adapters, what they learned and what the model still knows."""

from typing import Any

import pandas as pd
from pydantic import BaseModel

from subspacelab.report.figures import Line, choosable
from subspacelab.report.page import Figure, Headline, Section, Table
from subspacelab.report.results import Results, columns_of

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
    "base_BX_ratio": "the same on the inputs of the frozen base",
    "DeltaX_ratio": "change of the output over the input (DeltaX_ratio)",
    "adapter_contribution": "share of the adapter in the output",
}
REFERENCES = {"BX_ratio_random": ("random B", "dash"), "BX_ratio_optimum": ("the least possible", "dashdot")}
MAIN = ("adapter", "layer", *RATIOS, *REFERENCES)
BASE = "base"
ABOUT_PARETO = (
    "A point for each learning rate; bars: standard deviation over the seeds. Upper right is better. The base has "
    "learned nothing and forgotten nothing."
)
ABOUT_RATIOS = (
    "Dotted: as built. Solid: after training. Controls: a random B of the same rank, and the least share that any B of "
    "this rank can see."
)


class Verified(BaseModel):
    """The keys of a file in verify/ that this section reads."""

    stats: list[dict[str, Any]] = []


def section(results: Results) -> Section:
    """The section on nullspace, from the files that exist."""
    metrics = results.metrics(FOLDER)
    knowledge = results.table(f"{FOLDER}/knowledge.csv", text=("method",), numbers=("task_mean",))
    stats = results.table(f"{FOLDER}/stats.csv", text=("layer",))
    verified = _verified(results)
    blocks: list[Figure | Table] = []
    if knowledge is not None and len(knowledge):
        main = [name for name in columns_of(knowledge) if not name.endswith("_std")]
        blocks += [*_pareto(knowledge), Table("Knowledge by method and rate", knowledge, main, "Means over the seeds.")]
    if verified:
        blocks += [*_ratios(verified), _layers(verified)]
    others = {
        "Expectations of every layer, before and after training": stats,
        "Every training": results.table(f"{FOLDER}/knowledge_trainings.csv", text=("method",)),
        "Differences of the methods": results.table(f"{FOLDER}/knowledge_differences.csv", text=("method",)),
        "Recall at equal task": results.table(f"{FOLDER}/knowledge_equal_task.csv", text=("method",)),
    }
    blocks += [Table(title, table, folded=True) for title, table in others.items() if table is not None and len(table)]
    return Section("nullspace", QUESTION, _sentences(metrics, knowledge, stats), _headlines(metrics), blocks)


def _methods(metrics: dict[str, float]) -> list[str]:
    return [name.removesuffix("_recall") for name in metrics if name.endswith("_recall")]


def _headlines(metrics: dict[str, float]) -> list[Headline]:
    random = f"random B: {metrics['random_BX_ratio']:.3f}" if "random_BX_ratio" in metrics else ""
    found = []
    for name in _methods(metrics):
        solved = f"sums solved: {metrics[f'{name}_task']:.3f}" if f"{name}_task" in metrics else ""
        found.append(Headline(f"facts recalled, {name}", f"{metrics[f'{name}_recall']:.3f}", solved, f"{name}_recall"))
        if f"{name}_BX_ratio" in metrics:
            ratio = f"{name}_BX_ratio"
            found.append(Headline(f"BX_ratio after training, {name}", f"{metrics[ratio]:.3f}", random, ratio))
    return found


def _sentences(metrics: dict[str, float], knowledge: pd.DataFrame | None, stats: pd.DataFrame | None) -> list[str]:
    found = []
    for name in _methods(metrics):
        solved = f" and solves {metrics[f'{name}_task']:.1%} of the new sums" if f"{name}_task" in metrics else ""
        found.append(f"After its training {name} recalls {metrics[f'{name}_recall']:.1%} of the old facts{solved}.")
    if knowledge is not None and "num_seeds" in knowledge:
        seeds = pd.to_numeric(knowledge.loc[knowledge["method"] != BASE, "num_seeds"], errors="coerce").max()
        if seeds == 1:
            found.append("Each method was trained once here: a difference of single trainings is no finding.")
        elif seeds > 1:
            found.append(f"These are means over {seeds:.0f} seeds. Compare recalls where equally much was learned.")
    judged = [] if stats is None or "verdict" not in stats else [v for v in stats["verdict"] if v in ("pass", "fail")]
    if "fail" in judged:
        share = f"{judged.count('fail')} of {len(judged)}"
        found.append(f"{share} expectations of single layers fail; the table of expectations names them.")
    return found


def _pareto(knowledge: pd.DataFrame) -> list[Figure]:
    """Old facts against new problems, a point for each rate of each method."""
    by_method = {str(name): rows.sort_values("task_mean") for name, rows in knowledge.groupby("method", sort=False)}
    views = {
        words: [_points(rows, name, measure) for name, rows in by_method.items()]
        for measure, words in RECALLS.items()
        if f"{measure}_mean" in knowledge
    }
    title = "What is still known against what was learned"
    return choosable("nullspace-pareto", title, ABOUT_PARETO, views, "new problems solved")


def _points(rows: pd.DataFrame, name: str, measure: str) -> Line:
    def deviation(column: str) -> list[float] | None:
        given = pd.to_numeric(rows[column], errors="coerce").fillna(0) if column in rows else pd.Series([0.0])
        return given.tolist() if given.gt(0).any() else None

    rates = pd.to_numeric(rows["rate"], errors="coerce").tolist() if "rate" in rows else [float("nan")] * len(rows)
    text = ["" if rate != rate else f"rate {rate:g}" for rate in rates]
    x, y = rows["task_mean"].tolist(), pd.to_numeric(rows[f"{measure}_mean"], errors="coerce").tolist()
    error, error_x = deviation(f"{measure}_std"), deviation("task_std")
    return Line(name, x, y, name, int(name == BASE), error=error, error_x=error_x, text=text)


def _verified(results: Results) -> dict[str, pd.DataFrame]:
    """Adapter and state, such as `lora-trained` -> a row for each layer."""
    found = {}
    for path in results.find(f"{FOLDER}/verify/*.json"):
        stats = (results.json(path, Verified) or Verified()).stats
        plain = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in stats]
        table = pd.DataFrame(plain)
        if "layer" in table:
            found[path.rpartition("/")[2].removesuffix(".json")] = table
    return found


def _layers(verified: dict[str, pd.DataFrame]) -> Table:
    joined = pd.concat([table.assign(adapter=name) for name, table in verified.items()])
    return Table("Every layer of every adapter", joined, MAIN, folded=True)


def _ratios(verified: dict[str, pd.DataFrame]) -> list[Figure]:
    """Ratios of each adapter over its layers, with a random B and the optimum."""
    first = next(iter(verified.values()))
    views = {}
    for measure, words in RATIOS.items():
        if any(_numbers(table, measure) != [None] * len(table) for table in verified.values()):
            drawn = []
            for name, table in verified.items():
                method, _, state = name.rpartition("-")
                dash = "dot" if state == "init" else "solid"
                drawn.append(Line(name, _short(table["layer"]), _numbers(table, measure), method, dash=dash))
            views[words] = drawn + _references(first, shown=measure.endswith("BX_ratio"))
    return choosable("nullspace-ratios", "Every adapted layer", ABOUT_RATIOS, views, "", grouped=True)


def _numbers(table: pd.DataFrame, column: str) -> list[float | None]:
    """A column's numbers; None for missing values, and for all rows if the table lacks the column."""
    if column not in table:
        return [None] * len(table)
    return [None if value != value else value for value in pd.to_numeric(table[column], errors="coerce").tolist()]


def _references(table: pd.DataFrame, *, shown: bool) -> list[Line]:
    """Ratios of a random B and the optimum; empty for measures without them."""
    layers = _short(table["layer"])
    return [
        Line(
            words,
            layers,
            _numbers(table, key if shown else ""),
            key,
            1,
            True,
            dash,
            "lines",
        )
        for key, (words, dash) in REFERENCES.items()
    ]


def _short(layers: pd.Series) -> list[str]:
    """`model.layers.0.self_attn.q_proj` as `0.q_proj`, if that is unique among the layers."""
    parts = [str(name).split(".") for name in layers]
    short = [".".join([*(part for part in name[:-1] if part.isdigit()), name[-1]]) for name in parts]
    return short if len(set(short)) == len(short) else [str(name) for name in layers]
