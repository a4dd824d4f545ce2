"""A process that has imported the libraries once, and forks for every stage script that it is asked to run.

A start of Python with torch, transformers and pandas costs seconds, more than a stage of the smoke study works. The
forked process is a real one: leader of its own session, running the script as `__main__` with the package that stands
beside it. Only libraries are imported here and nothing is computed, so that no OpenMP thread exists when it forks.

Reads a JSON list of words a line; answers with the process id, then with its status as `os.waitpid` gives it.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

LIBRARIES = (
    "accelerate",
    "matplotlib.pyplot",
    "pandas",
    "peft",
    "PIL.Image",
    "pyarrow.parquet",
    "pydantic",
    "rich.progress",
    "ruamel.yaml",
    "safetensors.torch",
    "tokenizers",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.trainer",
)


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_stage_script(json.loads(line))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def run_stage_script(words: list[str]) -> None:
    os.setsid()
    os.dup2(2, 1)  # what it prints must not be taken for an answer
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    code = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else bool(e.code)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a forked process must not go on with the server's work


if __name__ == "__main__":
    main()
