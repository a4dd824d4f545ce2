"""What is damaged, and the commands that are then run on it."""
# ruff: noqa: E501

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST = ".subspacelab.json"
"""In a folder of loose reports: what our commands wrote there."""

Damage = Callable[[random.Random], str]


@dataclass(frozen=True)
class Run:
    """A command line, or several by ` ; `, and the only places where it may write."""

    words: str
    outs: tuple[str, ...]
    same: tuple[str, ...] = ()
    """Of these a run that ends well leaves the bytes of an undamaged run."""
    weight: float = 1.0
    door: Callable[[str], None] | None = None
    """What runs the words, if not the command line."""
    damage: Damage | None = None
    """What damages its input, if not the target's."""
    adds_only: bool = False
    """Whether nothing that is there may change, the places of its output included."""


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    parts: tuple[str, ...]
    """Files and folders of the template that the commands need."""
    runs: tuple[Run, ...]
    damage: Damage
    """Damages something below the working directory; says in words what."""
    draws: bool = False
    """Whether the pictures are always drawn."""


def copy_parts(template: Path, place: Path, target: Target) -> None:
    """The template's files of one target."""
    for part in target.parts:
        (place / part).parent.mkdir(parents=True, exist_ok=True)
        source = template / part
        if source.is_dir():
            shutil.copytree(source, place / part)
        elif source.exists() or part != MANIFEST:
            shutil.copy(source, place / part)


def _run_stage(words: str) -> None:
    """Runs a stage script of the project as a process of its own would."""
    import os
    import runpy
    import sys

    from subspacelab.pipeline import process

    os.chdir("project")
    name, *rest = words.split()
    sys.argv = [f"pipelines/{name}.py", *rest]
    sys.path.insert(0, str(Path("pipelines").resolve()))
    process.run_process = lambda work: work()  # type: ignore[assignment]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _anew(command: str, flag: str, place: str = "anew", weight: float = 1.0, also: tuple[str, ...] = ()) -> Run:
    """The command with another place for its output, where nothing lies."""
    return Run(f"{command} {flag} {place}", (place.split("/")[0], *also), weight=weight)


def _targets() -> list[Target]:
    from tests.faults import fuzz_data as d
    from tests.faults import fuzz_models as w
    from tests.faults import fuzz_mutators as m
    from tests.faults import fuzz_values as v
    from tests.faults.fuzz_inputs import HALF_ADAPTER, HALF_NETWORK
    from tests.faults.workshop import COMMANDS, QUICK

    c = COMMANDS
    decompose, decompose_anew = Run(c["decompose"], ("svd/out",)), _anew(c["decompose"], "--output-dir")
    norms_anew = _anew(c["norms"], "--output", "anew/n.json")
    build_anew, cache_anew = _anew(c["build"], "--save-path"), _anew(c["cache"], "--output-dir")
    verify_anew = _anew(c["verify"], "--save-stats", "anew/s.json")
    train_anew = _anew(c["train-adapter"], "--output-dir")
    norms, build, verify = (
        Run(c["norms"], ("norms", "norms.json")),
        Run(c["build"], ("adapter",)),
        Run(c["verify"], ("stats",)),
    )

    def of(run: Run, flag: str, value: str, weight: float = 1.0) -> Run:
        """The same command on another input."""
        return Run(f"{run.words} {flag} {value}", run.outs, weight=weight)

    def norms_of(model: str) -> Run:
        return Run(f"norms analyze --model {model} --output anew/n.json {QUICK}", ("anew",))

    def rows() -> tuple[Run, ...]:
        change = m.one_of((8, d.change_rows), (1, m.any_bytes))
        zipped = m.one_of((3, d.change_rows), (3, d.change_gzip), (1, m.change_kind))
        table = m.one_of((5, d.change_parquet), (1, m.any_bytes))
        texts = {"text.txt": m.one_of((5, d.change_text), (1, m.any_bytes)), "text.jsonl": change, "text.jsonl.gz": zipped,
                 "text.json.gz": zipped, "text.parquet": table, "sentence.parquet": table}  # fmt: skip
        whole = m.one_of((4, m.change_json), (1, m.change_json_text), (0.5, m.change_bytes))
        given = [(build_anew, "--calib-dataset", name, mutator) for name, mutator in texts.items()]
        given += [(verify_anew, "--calib-dataset", name, mutator) for name, mutator in texts.items()]
        given += [(train_anew, "--data", "rows.jsonl", change), (train_anew, "--data", "rows.json", whole)] * 2
        given += [
            (cache_anew, "--images", "images.jsonl", change),
            (cache_anew, "--images", "grounding/x.parquet", table),
        ] * 2
        return tuple(
            Run(f"{run.words} {flag} {name}", run.outs, damage=m.in_files((1, name, mutator)))
            for run, flag, name, mutator in given
        )

    chain = " ; ".join(f"rotation decompose --model-id names/{n} --output-dir anew {QUICK}" for n in "abc")
    compare_names = f"rotation compare --base anew/a --stage1 anew/b --stage2 anew/c --output-dir rotations {QUICK}"
    train, results = c["train-lowrank"], ("results/Sketch", "results/AdaLoRA", "log")
    return [
        Target(
            "safetensors",
            ("checkpoints/base", "lm", "adapter", "text.txt", "images", "svd/out", "norms.json", "norms", MANIFEST),
            (decompose, decompose_anew, norms, norms_anew, build, build_anew, verify_anew, cache_anew),
            m.in_files((3, "checkpoints/base/*.safetensors", m.any_safetensors), (2, "lm/*.safetensors", m.any_safetensors)),
        ),
        Target(
            "names",
            ("names", "names-out"),
            (
                Run(f"rotation decompose --model-id names/a --output-dir names-out {QUICK}", ("names-out",)),
                Run(f"rotation decompose --model-id names/a --output-dir anew {QUICK}", ("anew",)),
                Run(f"{chain} ; {compare_names}", ("anew", "rotations"), weight=0.5),
                norms_of("names/a"),
            ),
            w.change_names,
            draws=True,
        ),
        Target(
            "index",
            ("sharded", "lm-sharded", "text.txt", "images"),
            (
                of(decompose_anew, "--model-id", "sharded", 2), norms_of("sharded"), norms_of("lm-sharded"),
                of(build_anew, "--model-id", "lm-sharded"), of(cache_anew, "--model-id", "sharded"),
            ),
            m.in_files((3, "*sharded/*.index.json", m.any_json), (1, "*sharded/*.safetensors", m.any_safetensors)),
        ),
        Target(
            "config",
            ("checkpoints/base", "lm", "lm-sharded", "text.txt", "images", "adapter", "names/a"),
            (build, build_anew, cache_anew, verify_anew, norms_anew, norms_of("lm"), decompose_anew),
            m.in_files(
                (3, "lm/config.json", w.change_config), (2, "checkpoints/base/config.json", w.change_config),
                (1, "lm/config.json", m.any_json), (1, "checkpoints/base/config.json", m.any_json),
                (1, "lm/generation_config.json", m.any_json), (1.5, "lm", w.put_beside), (1, "checkpoints/base", w.put_beside),
            ),
        ),
        Target(
            "tokenizer",
            ("checkpoints/base", "lm", "text.txt", "rows.jsonl", "adapter"),
            (build, build_anew, verify_anew, norms_of("lm"), train_anew),
            m.in_files(
                (4, "lm/tokenizer.json", w.change_tokenizer), (3, "lm/tokenizer_config.json", w.change_tokenizer),
                (1, "lm/tokenizer*.json", m.any_json),
            ),
        ),
        Target(
            "bin",
            ("bin", "lm-bin", "text.txt", "images"),
            (
                of(decompose_anew, "--model-id", "bin", 2), norms_of("bin"), of(build_anew, "--model-id", "lm-bin"),
                of(cache_anew, "--model-id", "bin"), norms_of("lm-bin"),
            ),
            m.in_files((5, "*bin/*.bin", w.change_bin), (1, "*bin/*.bin", m.any_bytes)),
        ),
        Target(
            "factors",
            ("checkpoints/base", "svd/base", "svd/rl_stage1", "svd/rl_stage2", "svd/out", "rotations"),
            (
                Run(c["compare-rotations"], ("rotations",)),
                _anew(c["compare-rotations"], "--output-dir", weight=2),
                Run(c["decompose"], ("svd/out",), same=("svd/out",), weight=3),
            ),
            m.in_files(
                (2, "svd/*/index.json", m.any_json), (2, "svd/*/*.safetensors", m.any_safetensors),
                (1.5, "svd/out/base/index.json", m.any_json), (2.5, "svd/out/base/*.safetensors", m.any_safetensors),
                (1, "svd/out/base/*.safetensors", m.change_bytes),
            ),
        ),
        Target(
            "cache",
            ("checkpoints/base", "images", "features", "cached", "results"),
            (
                Run(c["cache"], ("cached",), same=("cached",), weight=3), _anew(f"{train} --epochs 1", "--results-dir", also=("log",)),
                Run(c["train-lowrank"], results), Run(c["compare-lowrank"], ("results/comparison",)),
                Run(c["visualize"], ("results/pictures",), weight=0.5),
            ),
            m.in_files(
                (2, "cached/*.json", m.any_json), (2, "cached/*.safetensors", m.any_safetensors), (1.5, "cached/*.parquet", d.change_parquet),
                (1, "cached/*.parquet", m.any_bytes), (1.5, "features/meta.json", m.any_json), (2, "features/*.safetensors", m.any_safetensors),
                (2, "features/*.parquet", d.change_parquet), (1, "features/*.parquet", m.any_bytes),
            ),
        ),
        Target(
            "networks",
            ("features", "results", "half-results"),
            (
                Run(f"{train} --resume", results, weight=2), Run(train, results),
                Run(train.replace("Sketch", "AdaLoRA") + " --resume", results), Run(c["compare-lowrank"], ("results/comparison",), weight=2),
                Run(HALF_NETWORK, ("half-results/Sketch", "log"), weight=2),
                Run(c["visualize"], ("results/pictures",), weight=0.5),
            ),
            m.in_files(
                (2, "results/*/best_model.json", m.any_json), (0.5, "results/*/history.json", m.any_json), (3, "results/*/*.safetensors", m.any_safetensors),
                (2, "half-results/*/last.safetensors", m.any_safetensors), (0.5, "half-results/*/*.json", m.any_json), (2, "*results/*/*.safetensors", w.change_record),
            ),
        ),
        Target(
            "adapter",
            ("lm", "adapter", "adapter-v1", "trained", "half", "text.txt", "rows.jsonl", "stats/measured.json"),
            (
                train_anew, Run(c["train-adapter"], ("trained",), same=("trained",)), Run(HALF_ADAPTER, ("half",), weight=2), verify, verify_anew,
                of(verify_anew, "--trained-model-path", "trained/ft"), of(verify_anew, "--trained-model-path", "adapter-v1"),
                of(train_anew, "--adapter", "adapter-v1"),
            ),
            m.in_files(
                (2, "adapter*/*.json", m.any_json), (2, "adapter*/*.safetensors", m.any_safetensors), (1, "trained/ft/*.json", m.any_json),
                (1, "trained/ft/*.safetensors", m.any_safetensors), (1, "half/checkpoints/*.json", m.any_json), (1, "half/checkpoints/*/*.json", m.any_json),
                (1, "half/checkpoints/*/*.safetensors", m.any_safetensors), (2, "half/checkpoints/*/*.[pb]*", m.any_bytes), (1, "adapter*", w.put_beside),
            ),
        ),
        Target(
            "rows",
            ("checkpoints/base", "lm", "adapter", "text.txt", "text.jsonl", "text.jsonl.gz", "text.json.gz", "text.parquet", "sentence.parquet",
             "rows.jsonl", "rows.json", "images.jsonl", "images", "grounding"),
            rows(),
            str,
        ),
        Target(
            "pictures",
            ("checkpoints/base", "images", "grounding", "images.jsonl"),
            (cache_anew, of(cache_anew, "--images", "images.jsonl", 0.5)),
            m.in_files((5, "images/*.png", d.change_picture), (1, "images/*.png", m.change_kind)),
        ),
        Target(
            "stats",
            ("stats/init.json", "stats/trained.json", "stats/compared"),
            (Run(c["compare-stats"], ("stats/compared",)), _anew(c["compare-stats"], "--output-dir")),
            m.in_files((1, "stats/init.json", m.any_json), (1, "stats/trained.json", m.any_json)),
        ),
        Target(
            "params",
            ("project",),
            tuple(
                Run(words, ("project/data/corpus", "project/data/scenes", "project/data/svd", "project/.cache", "project/reports/norms"), door=_run_stage, weight=weight)
                for words, weight in (("corpus", 2), ("decompose base", 1), ("analyze_norms base", 0.5), ("scenes", 0.2))
            ),
            m.in_files((3, "project/params.yaml", d.change_yaml), (3, "project/pipelines/studies/smoke.yaml", d.change_yaml),
                       (1, "project/dvc.yaml", d.change_yaml), (1, "project/*.yaml", m.any_bytes)),
        ),
        Target("places", v.PLACES_PARTS, tuple(Run(words, outs, adds_only=True) for words, outs in d.places(c)), d.make_places, draws=True),
    ]  # fmt: skip


TARGETS: Mapping[str, Target] = {target.name: target for target in _targets()}
