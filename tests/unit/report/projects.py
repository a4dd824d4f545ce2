"""A project with a few small results of every study, as the pipeline writes them."""

from pathlib import Path

import pandas as pd

from subspacelab.core.files import write_csv, write_json


def write_project(root: Path) -> Path:
    """Result files of the checkpoints and of all four studies, with numbers that are easy to find again."""
    reports = root / "reports"
    write_json(reports / "checkpoints/metrics.json", {"base_iou": 0.5, "rl_stage1_iou": 0.6, "constant_iou": 0.2})
    write_json(reports / "checkpoints/base.json", {"mean_iou": 0.5, "mean_iou_se": 0.01, "constant_iou": 0.2})
    _write_rotation(reports / "rotation")
    _write_lowrank(reports / "lowrank")
    _write_nullspace(reports / "nullspace")
    write_json(reports / "norms/metrics.json", {"base_token_norm": 0.5, "rl_stage2_token_norm": 0.75})
    scales = {"model": ["base", "base"], "module": ["base norm", "base norm"], "block": [0, 1], "abs_mean": [1.0, 2.0]}
    write_csv(reports / "norms/scales.csv", pd.DataFrame(scales))
    embedding = {"kind": "token", "norm_mean": 0.5, "largest": [{"id": 1, "norm": 0.9, "token": "<b>"}], "smallest": []}
    write_json(reports / "norms/base.json", {"embedding_layers": {"embed": embedding}, "norm_layers": {}})
    return root


def rotation_curves() -> pd.DataFrame:
    """Two groups over two layers; one is an identity on the side Vh."""
    rows = [
        {"module": module, "layer": layer, "identity_Vh": module == "square", "rotation_mse_Vh": 1e-9 * (layer + 1),
         "rotation_mse_Vh_null_mean": 2e-9, "oracle_mse_Vh": 1e-30, "angle_mean_02": 3.0, "floor_angle_mean": 0.1}
        for module in ("square", "tall")
        for layer in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _write_rotation(folder: Path) -> None:
    metrics = {
        "composition_error_ratio": 1.01,
        "composition_error_z": 0.5,
        "leading_energy": 1.75,
        "stage_cosine": 0.25,
    }
    write_json(folder / "metrics.json", metrics)
    outstanding = {"weight": "a.weight", "measure": "nss_02", "value": 1.0, "ratio": 3.0, "z": 9.0}
    write_json(folder / "details.json", {"null": {"standing_out": [outstanding]}})
    write_csv(folder / "curves.csv", rotation_curves())
    write_csv(
        folder / "layers.csv",
        pd.DataFrame({"weight": ["a.weight", "b.weight"], "module": "tall", "nss_02": [1.0, 2.0]}),
    )
    write_csv(folder / "modules.csv", pd.DataFrame({"module": ["tall"], "num_weights": 2, "nss_02_z": 40.0}))


def _write_lowrank(folder: Path) -> None:
    metrics = {"cosine_SVD": 0.99, "cosine_Sketch": 0.98, "cosine_network": 0.9}
    write_json(folder / "metrics.json", metrics)
    methods = {"SVD": 0.1, "MLP": 0.4, "random basis": 0.7}
    spreads = {name: {"relative_error": {"mean": error, "std": 0.01}} for name, error in methods.items()}
    details = {"methods": spreads, "flops_per_picture": dict.fromkeys(methods, 1e6), "rank": 4, "full_rank": 16}
    details |= {"training": {"Sketch": {"cosine_change": 1e-6}}, "task": {"X": {"task_iou": 0.625}}}
    details["task"]["SVD"] = {"task_iou": 0.5, "task_change": -0.125, "task_change_se": 0.03125}
    write_json(folder / "details.json", details)
    stored = [
        {"method": m, "rank": r, "format": f, "bytes_per_picture": r * bits, "cosine": 1 - 1 / bits, "task_iou": 0.5,
         "task_change_se": 0.1, "on_front": bits == 8}
        for m, r in (("X", 16), ("SVD", 4), ("SVD", 8))
        for f, bits in (("float32", 32), ("int8", 8))
    ]  # fmt: skip
    write_csv(folder / "rate_distortion.csv", pd.DataFrame(stored))
    write_json(folder / "pictures/rank_curve.json", {"SVD": {"4": 0.9, "16": 1.0}, "MLP": {"4": 0.8}})
    rows = [
        {"method": m, "dataset_id": f"{i:05d}", "cosine": 1 - e - i / 100} for m, e in methods.items() for i in range(3)
    ]
    write_csv(folder / "comparison.csv", pd.DataFrame(rows))


def _write_nullspace(folder: Path) -> None:
    write_json(
        folder / "metrics.json", {"lora_recall": 0.6, "lora_task": 0.8, "lora_BX_ratio": 0.5, "random_BX_ratio": 0.47}
    )
    knowledge = {
        "method": ["base", "lora"],
        "rate": [None, 1e-3],
        "num_seeds": 1,
        "task_mean": [0.0, 0.8],
        "recall_mean": [1, 0.6],
    }
    write_csv(folder / "knowledge.csv", pd.DataFrame(knowledge))
    stats = {
        "method": "lora",
        "layer": ["l.0.q", "l.1.q", "l.2.q"],
        "metric": "BX_ratio",
        "verdict": ["pass", "fail", "not applicable"],
    }
    write_csv(folder / "stats.csv", pd.DataFrame(stats))
    layers = [{"layer": f"l.{i}.q", "BX_ratio": 0.5, "BX_ratio_random": 0.47, "bound": None} for i in range(2)]
    for state in ("init", "trained"):
        write_json(folder / f"verify/lora-{state}.json", {"stats": layers})
